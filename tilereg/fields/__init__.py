"""Field models of matched pairs behind one interface, `tilereg.fit_model`.

* ``thin-plate``: a robust smoothing thin-plate spline on a lattice (`tilereg.field`).
* ``kriging``: the prior that predicts each pair from the others (`tilereg.kriging`).
* ``radial``: an exact sum of radial functions around control points, the interpolant of
  `scipy.interpolate.RBFInterpolator` with its smoothing chosen; with a Gaussian the kernel field
  of Coherent Point Drift.
* ``polynomial``: of degree 1 to 3.

All leave affine maps free, and all end as an affine map and a lattice of cubic B-splines: the
exact ones are sampled on it with a stated bound of the error (`tilereg.lattice_sampling`).
"""

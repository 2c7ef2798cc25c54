"""Fields whose stiffness is chosen in closed form: each pair is predicted by all others.

Universal kriging with an affine trend. Its leave-one-out residuals come from one decomposition
of the covariance for every amount of noise, so that tens of priors are judged in the time that
a single fit takes: those of Coherent Point Drift, a Gaussian covariance of any width, and the
thin-plate spline. Width and noise are properties of the deformation, not of how densely it is
sampled, so a few hundred pairs tell them.
"""

from tilereg.kriging.choice import choose_prior, sampled
from tilereg.kriging.fit import MOST_EXACT, Kriging, fit_kriging
from tilereg.kriging.leave_out import LeaveOut, leave_one_out, residuals_of
from tilereg.kriging.prior import Deviation, Prior, bent

__all__ = [
    "MOST_EXACT",
    "Deviation",
    "Kriging",
    "LeaveOut",
    "Prior",
    "bent",
    "choose_prior",
    "fit_kriging",
    "leave_one_out",
    "residuals_of",
    "sampled",
]

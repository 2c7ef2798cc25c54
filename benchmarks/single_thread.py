"""One thread for every BLAS: methods run beside other processes, and waiting threads spin.

On two busy cores, the small factorisations of point matching took fifteen times the CPU time with
two threads. Threads of other libraries (SimpleITK's, numba's) are left as they are.
"""

ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")}
"""Environment that a process must have when it loads its BLAS."""

"""Options of XLA for programs that run a few times on little data."""

import jax

# More than halve the time to compile on CPU, and slow down what is compiled.
QUICK_TO_COMPILE: dict[str, int | bool] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
}
if jax.__version_info__ < (0, 11):
    # Later versions know no other emitters.
    QUICK_TO_COMPILE["xla_cpu_use_fusion_emitters"] = False

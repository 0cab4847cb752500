// Stands in for the nvcc header of this name, so that CUDA's vector types and fp16/bf16 headers compile as plain C++.
#pragma once
#define __host__
#define __device__
#define __global__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __device_builtin__
#define __cudart_builtin__
#define CUDARTAPI
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
// A thread_local is static wherever it is declared and may be `extern`, as __shared__ is. All shared memory of a kernel
// is then the TLS segment of its shared object, which the runtime finds, poisons and watches.
#define __shared__ thread_local

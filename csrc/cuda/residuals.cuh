// The GPU twin of `residuals.h`: the same op on device pointers, queued on a stream.
#pragma once
#include <cuda_runtime_api.h>

#include "../residuals.h"

namespace invert_fast {

// Neither allocates nor waits, so it can be captured in a CUDA graph. Runs on the current device.
cudaError_t residuals(const Residuals& op, cudaStream_t stream);

}  // namespace invert_fast

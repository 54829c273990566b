// Attention of a chunk of text after each lane's prefix: what verifying a draft runs once a layer.
#pragma once
#include "fan_out.h"

namespace invert_fast {

// As fan_out_forward, but token n also sees the own tokens before it, and the window counts them. out [B, N, Hq, d],
// contiguous. A prefix is read where it lies, and what the diagonal hides is not computed. A score of infinity or NaN
// makes its token's output NaN.
void draft_attention(const FanOut& op, float* out, int threads);

}  // namespace invert_fast

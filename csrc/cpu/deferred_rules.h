// The steps that a row missed while it had no gradient, as a sum of few terms.
#pragma once

#include <cstdint>
#include <vector>

namespace fastadv {

// With m and v of Adam's step s, the steps s + 1 .. s + k without a gradient move a weight by
// -m * sum of weight[j] / (sqrt(v) + node[j]).
struct DeferredRule {
  std::vector<double> weight, node;
};

// The rule for s and k; lrs[i] is the rate of step s + 1 + i, and none is above lr_most.
DeferredRule deferred_rule(int64_t s, int64_t k, const double* lrs, double lr_most, double beta1,
                           double beta2, double eps);

}  // namespace fastadv

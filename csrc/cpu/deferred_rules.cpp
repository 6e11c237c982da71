// Rules of deferred Adam steps: Gauss quadrature of a discrete measure, on the host.
//
// Step t = s + i moves a weight that has no gradient by lr_t m_t^ / (sqrt(v_t^) + eps), where
// m_t^ = m beta1^i / (1 - beta1^t) and v_t^ = v beta2^i / (1 - beta2^t). Multiplied out, it is
// m A_i / (sqrt(v) + eps B_i) with
//   B_i = sqrt(1 - beta2^t) beta2^(-i/2),  A_i = lr_t beta1^i B_i / (1 - beta1^t).
// All A_i are positive: the sum over i is an integral of 1 / (sqrt(v) + eps b) over a measure that
// does not depend on v, and n nodes and weights (Golub & Welsch 1969) serve every element of a row.
#include "deferred_rules.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "dense.h"

namespace fastadv {
namespace {

// Largest relative error of a rule: small compared with float32's 6e-8.
constexpr double kTolerance = 1e-9;
// Up to kDirect terms are summed directly, because a quadrature would not pay; so are those that
// would need more than kMostNodes nodes.
constexpr int64_t kDirect = 6, kMostNodes = 24;

// A and B of the steps that matter.
void measure(int64_t s, int64_t k, const double* lrs, double lr_most, double beta1, double beta2,
             std::vector<double>& a, std::vector<double>& b) {
  const double ratio = beta1 / std::sqrt(beta2), root = 1.0 / std::sqrt(beta2);
  double power1 = std::pow(beta1, static_cast<double>(s));
  double power2 = std::pow(beta2, static_cast<double>(s));
  double falling = 1.0, rising = 1.0, sum = 0.0;
  for (int64_t i = 1; i <= k; ++i) {
    power1 *= beta1;
    power2 *= beta2;
    falling *= ratio;
    rising *= root;
    const double q = std::sqrt(1.0 - power2);
    a.push_back(lrs[i - 1] * falling * q / (1.0 - power1));
    b.push_back(q * rising);
    sum += a.back();
    // The rest is at most a geometric series: no q is above 1, no rate above lr_most.
    const double rest = lr_most * falling * ratio / ((1.0 - ratio) * (1.0 - power1));
    if (ratio < 1.0 && rest <= kTolerance * sum) break;
  }
}

// Number of nodes that makes 1 / (y + b) exact to kTolerance for every y >= 0: the quadrature has
// the error of n steps of conjugate gradients, 4 rho^2n of the whole, with rho from the spread of
// b.
int64_t nodes_needed(const std::vector<double>& b) {
  const auto [least, most] = std::minmax_element(b.begin(), b.end());
  const double spread = std::sqrt(*most / *least);
  const double rho = (spread - 1.0) / (spread + 1.0);
  if (rho <= 0.0) return 1;
  const double nodes = std::ceil(std::log(kTolerance / 4.0) / (2.0 * std::log(rho)));
  // Where momentum outlives its scale, b grows without bound, and rho is 1 or NaN.
  return rho < 1.0 && nodes <= kMostNodes ? static_cast<int64_t>(nodes) : kMostNodes + 1;
}

// The Jacobi matrix of the measure, by Lanczos: its diagonal and its off-diagonal. Returns the
// total weight.
double jacobi(const std::vector<double>& a, const std::vector<double>& b, int64_t n,
              std::vector<double>& diagonal, std::vector<double>& off) {
  const size_t count = a.size();
  double total = 0.0;
  for (const double x : a) total += x;
  std::vector<double> now(count), before(count, 0.0), next(count);
  for (size_t i = 0; i < count; ++i) now[i] = std::sqrt(a[i] / total);
  double beta = 0.0;
  for (int64_t step = 0; step < n; ++step) {
    double alpha = 0.0, norm = 0.0;
    for (size_t i = 0; i < count; ++i) alpha += b[i] * now[i] * now[i];
    for (size_t i = 0; i < count; ++i) {
      next[i] = (b[i] - alpha) * now[i] - beta * before[i];
      norm += next[i] * next[i];
    }
    diagonal.push_back(alpha);
    beta = std::sqrt(norm);
    // The measure has no more points than this.
    if (step + 1 == n || beta <= 1e-14 * alpha) break;
    off.push_back(beta);
    for (size_t i = 0; i < count; ++i) next[i] /= beta;
    std::swap(before, now);
    std::swap(now, next);
  }
  return total;
}

// Eigenvalues of a symmetric tridiagonal matrix into `diagonal`, and the first components of its
// eigenvectors: QL with implicit shifts (Golub & Van Loan, Matrix Computations, 8.3).
std::vector<double> eigen(std::vector<double>& diagonal, std::vector<double> off) {
  const auto n = static_cast<int64_t>(diagonal.size());
  std::vector<double> first(n, 0.0);
  first[0] = 1.0;
  off.push_back(0.0);
  for (int64_t low = 0; low < n; ++low) {
    for (;;) {
      int64_t high = low;
      while (high + 1 < n && std::abs(off[high]) > 1e-16 * (std::abs(diagonal[high]) +
                                                            std::abs(diagonal[high + 1]))) {
        ++high;
      }
      if (high == low) break;
      double g = (diagonal[low + 1] - diagonal[low]) / (2.0 * off[low]);
      double r = std::hypot(g, 1.0);
      g = diagonal[high] - diagonal[low] + off[low] / (g + std::copysign(r, g));
      double sine = 1.0, cosine = 1.0, shift = 0.0;
      for (int64_t i = high - 1; i >= low; --i) {
        const double f = sine * off[i], h = cosine * off[i];
        r = std::hypot(f, g);
        off[i + 1] = r;
        sine = f / r;
        cosine = g / r;
        g = diagonal[i + 1] - shift;
        r = (diagonal[i] - g) * sine + 2.0 * cosine * h;
        shift = sine * r;
        diagonal[i + 1] = g + shift;
        g = cosine * r - h;
        const double upper = first[i + 1];
        first[i + 1] = sine * first[i] + cosine * upper;
        first[i] = cosine * first[i] - sine * upper;
      }
      diagonal[low] -= shift;
      off[low] = g;
      off[high] = 0.0;
    }
  }
  return first;
}

}  // namespace

DeferredRule deferred_rule(int64_t s, int64_t k, const double* lrs, double lr_most, double beta1,
                           double beta2, double eps) {
  DeferredRule rule;
  std::vector<double> a, b;
  measure(s, k, lrs, lr_most, beta1, beta2, a, b);
  // Rates of zero: nothing moves.
  if (std::all_of(a.begin(), a.end(), [](double x) { return x == 0.0; })) return rule;
  const auto terms = static_cast<int64_t>(a.size());
  const int64_t n = terms <= kDirect ? terms : nodes_needed(b);
  if (n >= terms || n > kMostNodes) {
    rule.weight = std::move(a);
    rule.node = std::move(b);
  } else {
    std::vector<double> off;
    const double total = jacobi(a, b, n, rule.node, off);
    for (const double x : eigen(rule.node, off)) rule.weight.push_back(total * x * x);
  }
  for (double& x : rule.node) x *= eps;
  return rule;
}

namespace {

// The rules of pairs (starts[i], counts[i]), end to end in the given order: offsets (S + 1,) int64,
// weights and nodes (R,) float64.
std::tuple<at::Tensor, at::Tensor, at::Tensor> deferred_rules(const at::Tensor& starts,
                                                              const at::Tensor& counts,
                                                              const at::Tensor& lrs, int64_t base,
                                                              double beta1, double beta2,
                                                              double eps) {
  const int64_t size = starts.numel();
  check_dense(starts, at::kLong, {size}, "starts");
  check_dense(counts, at::kLong, {size}, "counts");
  check_dense(lrs, at::kDouble, {lrs.numel()}, "lrs");
  const auto *start = starts.const_data_ptr<int64_t>(), *count = counts.const_data_ptr<int64_t>();
  const auto* rates = lrs.const_data_ptr<double>();
  for (int64_t i = 0; i < size; ++i) {
    TORCH_CHECK_VALUE(
        start[i] >= base && count[i] >= 0 && start[i] - base + count[i] <= lrs.numel(),
        "found a row last in step ", start[i], " that missed ", count[i], ", expected steps from ",
        base, " to ", base + lrs.numel());
  }
  const double most = lrs.numel() == 0 ? 0.0 : *std::max_element(rates, rates + lrs.numel());
  std::vector<DeferredRule> rules(size);
  at::parallel_for(0, size, 16, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      rules[i] =
          deferred_rule(start[i], count[i], rates + (start[i] - base), most, beta1, beta2, eps);
    }
  });
  at::Tensor offsets = at::empty({size + 1}, starts.options());
  auto* offset = offsets.mutable_data_ptr<int64_t>();
  offset[0] = 0;
  for (int64_t i = 0; i < size; ++i) {
    offset[i + 1] = offset[i] + static_cast<int64_t>(rules[i].weight.size());
  }
  at::Tensor weights = at::empty({offset[size]}, lrs.options()), nodes = at::empty_like(weights);
  for (int64_t i = 0; i < size; ++i) {
    std::copy(rules[i].weight.begin(), rules[i].weight.end(),
              weights.mutable_data_ptr<double>() + offset[i]);
    std::copy(rules[i].node.begin(), rules[i].node.end(),
              nodes.mutable_data_ptr<double>() + offset[i]);
  }
  return {offsets, weights, nodes};
}

}  // namespace
}  // namespace fastadv

TORCH_LIBRARY_FRAGMENT(fastadv, m) {
  m.def(
      "deferred_rules(Tensor starts, Tensor counts, Tensor lrs, int base, float beta1, float beta2,"
      " float eps) -> (Tensor offsets, Tensor weights, Tensor nodes)");
}

TORCH_LIBRARY_IMPL(fastadv, CPU, m) { m.impl("deferred_rules", &fastadv::deferred_rules); }

#include "checks.hpp"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

namespace efficientzero {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

void check_range(const char* name, double value, double low, double high) {
  if (!(value >= low && value <= high)) {
    fail(std::string(name) + " is " + std::to_string(value) + "; it must be between " + std::to_string(low) + " and " +
         std::to_string(high));
  }
}

void check_values(const char* name, const float* values, int64_t count) {
  for (int64_t root = 0; root < count; ++root) {
    if (!(std::fabs(values[root]) <= kLargestValue)) {
      fail(std::string(name) + " of root " + std::to_string(root) + " is " + std::to_string(values[root]) +
           "; it must be finite and at most 1e30 in size");
    }
  }
}

// At least one logit must be finite, none may be NaN or +inf. Those of illegal actions are not looked at.
void check_logits(const float* logits, const uint8_t* legal, int64_t root, int64_t num_actions) {
  int any = 0, finite = 0, wrong = 0;  // No branches: this runs over every network output.
  for (int64_t a = 0; a < num_actions; ++a) {
    const int looked_at = legal == nullptr || legal[a] != 0;
    any |= looked_at;
    finite |= looked_at & (std::fabs(logits[a]) <= std::numeric_limits<float>::max());
    wrong |= looked_at & !(logits[a] <= std::numeric_limits<float>::max());
  }
  if (finite && !wrong) return;
  const std::string where = " of root " + std::to_string(root);
  if (!any) fail("legal_actions" + where + " allow no action; a root needs at least one");
  if (wrong) fail("policy_logits" + where + " hold NaN or +inf; every logit must be finite or -inf");
  fail("policy_logits" + where + " are -inf for every legal action; at least one must be finite");
}

void check_noise(const float* noise, const uint8_t* legal, int64_t root, int64_t num_actions) {
  double sum = 0.0;
  for (int64_t a = 0; a < num_actions; ++a) {
    if (legal != nullptr && !legal[a]) continue;
    if (!(noise[a] >= 0.0f && noise[a] <= kLargestValue)) {
      fail("noise of root " + std::to_string(root) + " is " + std::to_string(noise[a]) + " for action " +
           std::to_string(a) + "; it must be finite and not negative");
    }
    sum += noise[a];
  }
  if (!(sum > 0.0)) fail("noise of root " + std::to_string(root) + " is 0 for every legal action");
}

}  // namespace

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    fail(std::string(name) + " is " + std::to_string(value) + "; it must be between " + std::to_string(low) + " and " +
         std::to_string(high));
  }
}

void check_config(const Config& config) {
  check_range("num_roots", config.num_roots, 1, 1 << 20);
  check_range("num_actions", config.num_actions, 1, 65535);
  check_range("num_simulations", config.num_simulations, 0, 65534);
  check_range("horizon", config.horizon, 1, 1 << 30);
  check_range("max_considered_actions", config.max_considered_actions, 1, 1 << 30);
  check_range("num_threads", config.num_threads, 1, 1024);
  check_range("first_root", config.first_root, 0, 1 << 30);
  check_range("discount", config.discount, 0.0, 1.0);
  check_range("pb_c_init", config.pb_c_init, 0.0, 1e6);
  check_range("pb_c_base", config.pb_c_base, 1e-6, 1e12);
  check_range("value_delta_max", config.value_delta_max, 0.0, 1e30);
  check_range("c_visit", config.c_visit, 0.0, 1e6);
  check_range("c_scale", config.c_scale, 0.0, 1e6);
  check_range("min_q_range", config.min_q_range, 1e-30, 1e30);
}

void check_roots(const Config& config, const RootInput& input) {
  if (config.policy == Policy::kGumbel) {
    if (input.value == nullptr) fail("policy='gumbel' needs value, the network's value of each root");
    if (input.noise != nullptr) fail("noise belongs to policy='puct'; policy='gumbel' explores with gumbel");
  } else if (input.gumbel != nullptr) {
    fail("gumbel belongs to policy='gumbel'; policy='puct' explores with noise");
  }
  check_range("noise_fraction", input.noise_fraction, 0.0, 1.0);
  if (input.value != nullptr) check_values("value", input.value, config.num_roots);
  const int64_t actions = config.num_actions;
  for (int64_t root = 0; root < config.num_roots; ++root) {
    const uint8_t* legal = input.legal == nullptr ? nullptr : input.legal + root * actions;
    check_logits(input.logits + root * actions, legal, root, actions);
    if (input.noise != nullptr) check_noise(input.noise + root * actions, legal, root, actions);
    for (int64_t a = 0; input.gumbel != nullptr && a < actions; ++a) {
      if (!(std::fabs(input.gumbel[root * actions + a]) <= kLargestValue)) {
        fail("gumbel of root " + std::to_string(root) + " is not finite for action " + std::to_string(a));
      }
    }
  }
}

void check_leaves(const Config& config, const LeafInput& input) {
  check_values("value_prefix", input.value_prefix, config.num_roots);
  check_values("value", input.value, config.num_roots);
  for (int64_t root = 0; root < config.num_roots; ++root) {
    check_logits(input.logits + root * config.num_actions, nullptr, root, config.num_actions);
  }
}

}  // namespace efficientzero

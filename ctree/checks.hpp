// Checks of arguments. They throw std::invalid_argument with one sentence that says what is wrong.
#pragma once

#include "config.hpp"

namespace efficientzero {

void check_config(const Config& config);
void check_roots(const Config& config, const RootInput& input);
void check_leaves(const Config& config, const LeafInput& input);
void check_range(const char* name, int64_t value, int64_t low, int64_t high);

}  // namespace efficientzero

// The charts of a report, by section: what is drawn of its JSON.
#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "report/chart.h"

namespace whit {

// Reads of a document of any shape: a member's number or text, or the fallback.
double number_of(const Json& object, const char* key, double fallback);
std::string text_of(const Json& object, const char* key, const std::string& fallback = "");
const Json& member_of(const Json& object, const char* key);  // null where there is none

// Of one engine's groups.
std::vector<Chart> outlier_charts(const Json& groups);  // by layer, then the worst by channel
std::vector<Chart> weight_charts(const Json& groups);   // ranges before and after folding
std::vector<Chart> choice_charts(const Json& groups);   // exponents, clipping, bits
std::vector<Chart> error_charts(const Json& groups);    // by group; KL divergence where known
// Where a sensitivity study measured the groups: the divergence of each in every scheme, alone; the
// predicted front with the plan that was chosen, and what the engine came to.
std::vector<Chart> sensitivity_charts(const Json& engine);
// Of all engines: KL divergence against size, and the front.
std::vector<Chart> tradeoff_charts(const Json& engines);

}  // namespace whit

// What a report (report/report.h) says of engines: their records, with what the run that made them
// saw beside.
#pragma once

#include <string>
#include <vector>

#include "engine/model.h"
#include "quantize/quantize.h"

namespace whit {

// A member of the report's "engines". `summary` null: the engine was there already.
Json report_engine(const std::string& name, const Model& engine, const QuantizeSummary* summary);

// "recommendation" of a report's engines: which of them for fidelity, size and speed, AWQ or
// SmoothQuant, and the figures that say so. Null where none has been measured.
Json recommend(const Json& engines);

}  // namespace whit

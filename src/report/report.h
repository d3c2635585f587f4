// The report of a quantization or a comparison: one document, as JSON and as one self-contained
// HTML page that is drawn from that JSON alone.
//
// The document ("format" "whit-report", "version" 1); members that are missing are left out of the
// page:
//   title, model, tool_version, command
//   engines      [{name, mode, scheme, bytes, bits_per_weight, seconds, peak_memory_bytes, quality:
//                 {ppl, reference_ppl, ppl_ratio, kld, top1_agreement, text}, prefill, decode,
//                 warnings, groups}]
//     groups     [{name, layer, kind, exponent, clipped, rtn_error, error, kld, bits,
//                 activations: {channels, before: [max by bin], after}, weights: [{name, before:
//                 [min, max], after}], note}]
//   recommendation {choice, why: [text]}
//   calibration  what engine.json records
//   study        {sets, texts, cells, notes} of compare --calib … --calib …
//   figures      [[name, text]]: times, memory, machine
#pragma once

#include <string>

#include "base/json.h"

namespace whit {

// Throws nothing for a document of any shape: what cannot be drawn is left out. Every string of it
// is escaped.
std::string report_html(const Json& report);

// Of a file's name: .json or .html (and .htm). Throws kInvalidArgument for any other.
void write_report(const std::string& path, const Json& report);
void check_report_name(const std::string& path);

}  // namespace whit

// Lines of panels from rows of canonical weights, for CPUs with AVX2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace whit::cpu::avx2 {

// Lines [0, lines) at `to` from bytes [offset, offset + 4 · lines) of the 32 rows of a panel; a row
// is null past the last one and ends at byte row_end, zeros follow. Where kNibbles a word's eight
// codes are brought to the packed order (linear_layout.h).
template <bool kNibbles>
void pack_lines(const uint8_t* const* rows, int64_t offset, int64_t row_end, int64_t lines,
                std::byte* to);

}  // namespace whit::cpu::avx2

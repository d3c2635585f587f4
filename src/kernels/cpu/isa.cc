// Which instruction sets this CPU and operating system support (Intel SDM vol. 2, CPUID and
// XGETBV).
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu/table.h"

namespace whit::cpu {
namespace {

constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAmx};

bool bit(uint32_t word, int index) { return (word >> index & 1) != 0; }

// Register state that the operating system saves: bits 1–2 SSE and AVX, bits 5–7 AVX-512.
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

// Tile registers take 8 KB of every thread's saved state: Linux grants them on request, once for
// the process and its threads (Documentation/arch/x86/xstate.rst).
constexpr uint64_t kTileState = 0x60000;  // bits 17 (configuration) and 18 (data)
bool request_tiles() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

Isa detect() {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kPortable;
  const bool fma = bit(c, 12), os_saves = bit(c, 27), f16c = bit(c, 29);
  if (!os_saves || !fma || !f16c) return Isa::kPortable;
  const uint64_t state = enabled_state();
  if ((state & 0x6) != 0x6) return Isa::kPortable;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::kPortable;
  const bool avx2 = bit(b, 5), bmi2 = bit(b, 8);
  if (!avx2 || !bmi2) return Isa::kPortable;

  const bool f = bit(b, 16), dq = bit(b, 17), bw = bit(b, 30), vl = bit(b, 31), vnni = bit(c, 11);
  const uint32_t last_subleaf = a;
  const bool tiles = bit(d, 22) && bit(d, 24) && bit(d, 25) && (state & kTileState) == kTileState;
  if (!f || !dq || !bw || !vl || !vnni || (state & 0xe6) != 0xe6 || last_subleaf < 1)
    return Isa::kAvx2;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return Isa::kAvx2;
  const bool bf16 = bit(a, 5);
  if (!bf16) return Isa::kAvx2;
  return tiles && request_tiles() ? Isa::kAmx : Isa::kAvx512;
}

}  // namespace

std::string_view name(Isa isa) {
  constexpr std::string_view kNames[] = {"portable", "avx2", "avx512", "amx"};
  return kNames[static_cast<int>(isa)];
}

Isa parse_isa(std::string_view text) {
  for (Isa isa : kAllIsas)
    if (name(isa) == text) return isa;
  throw Error(ErrorKind::kInvalidArgument,
              "unknown instruction set \"{}\"; possible are portable, avx2, avx512 and amx", text);
}

Isa detected_isa() {
  static const Isa isa = detect();
  return isa;
}

}  // namespace whit::cpu

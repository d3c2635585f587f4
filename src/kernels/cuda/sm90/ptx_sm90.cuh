// Warpgroup matrix products, bulk copies and their barriers (PTX ISA 9.0, SM 9.0a only).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda/ptx.cuh"

namespace whit::cuda {

__device__ __forceinline__ void barrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1, %2;\n"
      "@!p bra again; }" ::"r"(barrier),
      "r"(parity), "n"(10'000'000)  // ns that it may sleep instead of asking again
      : "memory");
}
// The same without sleep, from which a warp comes back late: where every microsecond counts.
__device__ __forceinline__ void barrier_spin(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{ .reg .pred p;\n"
      "again: mbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n"
      "@!p bra again; }" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The value, of which the compiler does not know that it is the same in all threads of a warp.
__device__ __forceinline__ uint32_t per_thread(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Of 16 bytes only the first `bytes` are read; zeros follow them.
__device__ __forceinline__ void copy_async_16(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(bytes)
               : "memory");
}
// Arrives once what this thread has asked for by copy_async has come.
__device__ __forceinline__ void copy_async_arrive(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Whether this is the one thread of its warp that is chosen; all of them call it.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }"
               : "=r"(elected));
  return elected != 0;
}

// Global to shared memory, completing on the barrier. Sizes and addresses are multiples of 16.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void tensor_copy_2d(uint32_t to, const CUtensorMap* map, int column,
                                               int row, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

// Four 8 × 8 matrices of 16-bit elements, as a product leaves them in a warp (lane: row lane / 4,
// columns 2 · (lane % 4) and one more), transposed: column j of matrix i becomes the 16 bytes at
// the address of lane 8 i + j.
__device__ __forceinline__ void store_transposed(uint32_t to, const uint32_t (&matrices)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to),
               "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]), "r"(matrices[3])
               : "memory");
}

// Brings a tensor map, a kernel's parameter, near: the first copy by it comes sooner.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
// Four words at this block's shared address, in the block of that rank of the cluster.
__device__ __forceinline__ uint4 load_cluster(uint32_t address, int rank) {
  uint4 v;
  asm volatile(
      "{ .reg .u32 remote; mapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [remote]; }"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "r"(address), "r"(rank)
      : "memory");
  return v;
}

// The same box to that address of every block of the cluster that the mask names, completing on
// each one's barrier at that address.
__device__ __forceinline__ void tensor_copy_2d_to_all(uint32_t to, const CUtensorMap* map,
                                                      int column, int row, uint32_t barrier,
                                                      uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(mask)
      : "memory");
}
// What a shared address of this block is in the block of that rank of the cluster.
__device__ __forceinline__ uint32_t cluster_address(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
// At a barrier by its cluster address.
__device__ __forceinline__ void barrier_arrive_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Operand B, rows of 128 bytes of K in shared memory swizzled by 128 bytes, 1024-byte aligned:
// eight rows are 1024 bytes apart from the next eight.
__device__ __forceinline__ uint64_t swizzled_operand(uint32_t address) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{1} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

// Operand A or B of core matrices (8 rows × 16 bytes of K, 128 bytes), without swizzle: `along_k`
// bytes from one to the next along K, `rows` bytes to that of the next eight rows.
__device__ __forceinline__ uint64_t core_matrix_operand(uint32_t address, uint32_t along_k,
                                                        uint32_t rows) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{along_k >> 4} << 16 |
         uint64_t{rows >> 4} << 32;
}

// Operand B of which K are the rows: 64 columns are a row of 128 bytes, swizzled; eight rows are
// 1024 bytes apart from the next eight, 64 columns `columns` bytes from the next 64.
__device__ __forceinline__ uint64_t transposed_operand(uint32_t address, uint32_t columns) {
  return uint64_t{(address & 0x3ffff) >> 4} | uint64_t{columns >> 4} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// d (+)= a · bᵀ of a warpgroup, 64 rows × twice as many columns as d has registers: 32 of K of
// int8 or e4m3, or 16 of bf16. d is the warpgroup's own again after wgmma_wait.
#define WHIT_D4 "%0, %1, %2, %3"
#define WHIT_D8 WHIT_D4 ", %4, %5, %6, %7"
#define WHIT_D16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WHIT_D32 \
  WHIT_D16       \
  ", "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WHIT_D64                                                                     \
  WHIT_D32                                                                           \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WHIT_D128                                                                        \
  WHIT_D64                                                                               \
  ", "                                                                                   \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "     \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "     \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, "     \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, " \
  "%124, %125, %126, %127"
#define WHIT_INOUT4(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define WHIT_INOUT8(c, d, i) WHIT_INOUT4(c, d, i), WHIT_INOUT4(c, d, i + 4)
#define WHIT_INOUT16(c, d, i)                                               \
  WHIT_INOUT4(c, d, i), WHIT_INOUT4(c, d, i + 4), WHIT_INOUT4(c, d, i + 8), \
      WHIT_INOUT4(c, d, i + 12)
#define WHIT_INOUT32(c, d, i) WHIT_INOUT16(c, d, i), WHIT_INOUT16(c, d, i + 16)
#define WHIT_INOUT64(c, d, i) WHIT_INOUT32(c, d, i), WHIT_INOUT32(c, d, i + 32)
#define WHIT_INOUT128(c, d, i) WHIT_INOUT64(c, d, i), WHIT_INOUT64(c, d, i + 64)
// count: registers of d; a0 … a3, b, p: the numbers of the operands that follow them.
#define WHIT_WGMMA(function, type, constraint, count, instruction, last, a0, a1, a2, a3, n, p) \
  __device__ __forceinline__ void function(type(&d)[count], const uint32_t(&a)[4], uint64_t b, \
                                           int accumulate) {                                   \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #p                                         \
                 ", 0;\n"                                                                      \
                 "wgmma.mma_async.sync.aligned." instruction " {" WHIT_D##count                \
                 "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #n ", p" last "; }"          \
                 : WHIT_INOUT##count(constraint, d, 0)                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));       \
  }
WHIT_WGMMA(wgmma, int, "+r", 4, "m64n8k32.s32.s8.s8", "", 4, 5, 6, 7, 8, 9)
WHIT_WGMMA(wgmma, int, "+r", 8, "m64n16k32.s32.s8.s8", "", 8, 9, 10, 11, 12, 13)
WHIT_WGMMA(wgmma, int, "+r", 16, "m64n32k32.s32.s8.s8", "", 16, 17, 18, 19, 20, 21)
WHIT_WGMMA(wgmma, int, "+r", 32, "m64n64k32.s32.s8.s8", "", 32, 33, 34, 35, 36, 37)
WHIT_WGMMA(wgmma, int, "+r", 64, "m64n128k32.s32.s8.s8", "", 64, 65, 66, 67, 68, 69)
WHIT_WGMMA(wgmma, int, "+r", 128, "m64n256k32.s32.s8.s8", "", 128, 129, 130, 131, 132, 133)
WHIT_WGMMA(wgmma, float, "+f", 4, "m64n8k16.f32.bf16.bf16", ", 1, 1, 0", 4, 5, 6, 7, 8, 9)
WHIT_WGMMA(wgmma, float, "+f", 8, "m64n16k16.f32.bf16.bf16", ", 1, 1, 0", 8, 9, 10, 11, 12, 13)
WHIT_WGMMA(wgmma, float, "+f", 16, "m64n32k16.f32.bf16.bf16", ", 1, 1, 0", 16, 17, 18, 19, 20, 21)
WHIT_WGMMA(wgmma, float, "+f", 32, "m64n64k16.f32.bf16.bf16", ", 1, 1, 0", 32, 33, 34, 35, 36, 37)
WHIT_WGMMA(wgmma, float, "+f", 64, "m64n128k16.f32.bf16.bf16", ", 1, 1, 0", 64, 65, 66, 67, 68, 69)
WHIT_WGMMA(wgmma_e4m3, float, "+f", 4, "m64n8k32.f32.e4m3.e4m3", ", 1, 1", 4, 5, 6, 7, 8, 9)
WHIT_WGMMA(wgmma_e4m3, float, "+f", 8, "m64n16k32.f32.e4m3.e4m3", ", 1, 1", 8, 9, 10, 11, 12, 13)
WHIT_WGMMA(wgmma_e4m3, float, "+f", 16, "m64n32k32.f32.e4m3.e4m3", ", 1, 1", 16, 17, 18, 19, 20, 21)
WHIT_WGMMA(wgmma_e4m3, float, "+f", 32, "m64n64k32.f32.e4m3.e4m3", ", 1, 1", 32, 33, 34, 35, 36, 37)
// b: operand of transposed_operand.
WHIT_WGMMA(wgmma_transposed, float, "+f", 32, "m64n64k16.f32.bf16.bf16", ", 1, 1, 1", 32, 33, 34,
           35, 36, 37)
WHIT_WGMMA(wgmma_transposed, float, "+f", 64, "m64n128k16.f32.bf16.bf16", ", 1, 1, 1", 64, 65, 66,
           67, 68, 69)

// d (+)= a · bᵀ with a in shared memory too, 64 rows × 16 of K of bf16.
__device__ __forceinline__ void wgmma(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{ .reg .pred p; setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" WHIT_D64
      "}, %64, %65, p, 1, 1, 0, 0; }"
      : WHIT_INOUT64("+f", d, 0)
      : "l"(a), "l"(b), "r"(accumulate));
}

// The same of int8, 32 of K.
#define WHIT_WGMMA_SHARED(count, shape, a, n, p)                                                \
  __device__ __forceinline__ void wgmma(int(&d)[count], uint64_t a_operand, uint64_t b_operand, \
                                        int accumulate) {                                       \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #p                                          \
                 ", 0;\n"                                                                       \
                 "wgmma.mma_async.sync.aligned." shape ".s32.s8.s8 {" WHIT_D##count             \
                 "}, %" #a ", %" #n ", p; }"                                                    \
                 : WHIT_INOUT##count("+r", d, 0)                                                \
                 : "l"(a_operand), "l"(b_operand), "r"(accumulate));                            \
  }
WHIT_WGMMA_SHARED(16, "m64n32k32", 16, 17, 18)
WHIT_WGMMA_SHARED(32, "m64n64k32", 32, 33, 34)
WHIT_WGMMA_SHARED(64, "m64n128k32", 64, 65, 66)
WHIT_WGMMA_SHARED(128, "m64n256k32", 128, 129, 130)

#undef WHIT_WGMMA_SHARED
#undef WHIT_WGMMA
#undef WHIT_INOUT4
#undef WHIT_INOUT8
#undef WHIT_INOUT16
#undef WHIT_INOUT32
#undef WHIT_INOUT64
#undef WHIT_INOUT128
#undef WHIT_D4
#undef WHIT_D8
#undef WHIT_D16
#undef WHIT_D32
#undef WHIT_D64
#undef WHIT_D128

}  // namespace whit::cuda

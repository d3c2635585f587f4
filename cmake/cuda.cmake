# The CUDA backend: sources named .cu, compiled where a CUDA toolkit of at least 12.4 is found (WHIT_CUDA=OFF leaves it out).
#   WHIT_CUDA_ENABLED   whether it is built
# Without it the sources of src/kernels/cuda/absent/ answer in its place. Other .cc files of src/kernels/cuda/ are compiled
# either way and include no header of CUDA's: packing is tested where there is no toolkit.

option(WHIT_CUDA "Build the CUDA backend where the CUDA toolkit is found" ON)
# Sources in profiles; it writes the folders of this machine into the binaries.
option(WHIT_CUDA_LINEINFO "Compile CUDA sources with -lineinfo" OFF)
set(WHIT_CUDA_ENABLED OFF)
if(WHIT_CUDA AND NOT WHIT_SANITIZE AND NOT WHIT_FUZZ)
  include(CheckLanguage)
  # nvcc is often installed and not on the path.
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(WHIT_NVCC nvcc HINTS /usr/local/cuda/bin)
    if(WHIT_NVCC)
      set(CMAKE_CUDA_COMPILER ${WHIT_NVCC})
    endif()
  endif()
  # Machine code is chosen by source below.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    # CMake 3.25 does not know that nvcc has C++20.
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    find_package(CUDAToolkit 12.4 QUIET)
    if(CUDAToolkit_FOUND)
      set(WHIT_CUDA_ENABLED ON)
    endif()
  endif()
  if(WHIT_CUDA_ENABLED)
    message(STATUS "CUDA backend: toolkit ${CUDAToolkit_VERSION}")
  else()
    message(STATUS "CUDA backend: not built (no CUDA toolkit of at least 12.4 found)")
  endif()
endif()

# whit_cuda_sources(FILE...): the flags of CUDA sources. A folder sm90/ is machine code for Hopper alone (wgmma, bulk copies);
# everything else is that, and PTX for any GPU from SM 80 up, which the driver compiles.
function(whit_cuda_sources)
  set(flags --expt-relaxed-constexpr $<$<BOOL:${WHIT_CUDA_LINEINFO}>:-lineinfo> -Xcompiler=-Wall,-Wextra,-Wno-unused-parameter
    # As for the CPU: contraction is written where it is wanted.
    -fmad=false
    # nvcc 13 stumbles over fmt 9: no compile-time check of format strings in .cu files, and constexpr as for g++.
    -DFMT_CONSTEVAL= -DFMT_USE_CONSTEXPR=1
    -gencode arch=compute_90a,code=sm_90a)
  foreach(source IN LISTS ARGN)
    set(own ${flags})
    if(NOT source MATCHES "/sm90/")
      list(APPEND own -gencode arch=compute_80,code=compute_80)
    endif()
    set_property(SOURCE ${source} PROPERTY COMPILE_OPTIONS ${own})
  endforeach()
endfunction()

# whit_link_cuda(TARGET): by LINK_ONLY, since other sources need no header of CUDA's and shall not be compiled anew for it.
function(whit_link_cuda target)
  # Static, so that the program starts where there is neither toolkit nor driver. cuBLASLt is opened when first needed.
  target_link_libraries(${target} PUBLIC $<LINK_ONLY:CUDA::cudart_static>)
endfunction()

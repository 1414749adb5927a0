# Warnings, hardening and sanitizers for our own code, as one interface target.
add_library(rewarm_warnings INTERFACE)
target_compile_options(
    rewarm_warnings
    INTERFACE -Wall
              -Wextra
              -Wshadow
              -Wconversion
              -Wformat=2
              -Wvla
              -Wstrict-prototypes
              -Wmissing-prototypes
              -Wpointer-arith
              -Wwrite-strings
              -Wundef
              # Messages are cut on purpose where they do not fit.
              $<$<C_COMPILER_ID:GNU>:-Wno-format-truncation>
              -fno-strict-aliasing)
if(REWARM_WERROR)
    target_compile_options(rewarm_warnings INTERFACE -Werror)
endif()

# Hardening: position-independent programs, full RELRO, no executable stack, guarded stacks and calls.
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
add_link_options(-pie -Wl,-z,relro,-z,now,-z,noexecstack)
target_compile_options(rewarm_warnings INTERFACE -fstack-protector-strong -fstack-clash-protection)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_options(rewarm_warnings INTERFACE -fcf-protection)
endif()
if(NOT CMAKE_BUILD_TYPE STREQUAL "Debug" AND NOT REWARM_SANITIZE)
    # Some compilers define it by themselves: undefine first.
    target_compile_options(rewarm_warnings INTERFACE -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()

if(REWARM_SANITIZE)
    # For everything, generated code too: a report must end the program with an error.
    add_compile_options(-fsanitize=${REWARM_SANITIZE} -fno-sanitize-recover=all
                        -fno-omit-frame-pointer)
    add_link_options(-fsanitize=${REWARM_SANITIZE})
endif()
if(REWARM_COVERAGE)
    add_compile_options(--coverage)
    add_link_options(--coverage)
endif()
if(REWARM_LIBFUZZER)
    add_compile_options(-fsanitize=fuzzer-no-link)
endif()

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
              -Wno-format-truncation # messages are cut on purpose where they do not fit
              -fstack-protector-strong
              -fno-strict-aliasing)
if(REWARM_WERROR)
    target_compile_options(rewarm_warnings INTERFACE -Werror)
endif()
if(CMAKE_BUILD_TYPE STREQUAL "Release" OR CMAKE_BUILD_TYPE STREQUAL "RelWithDebInfo")
    target_compile_definitions(rewarm_warnings INTERFACE _FORTIFY_SOURCE=2)
endif()

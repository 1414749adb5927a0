# What `cmake --install` puts where, beside the command.
# tools/uninstall asks an installation into an empty folder what there is to remove, so that there is no
# second list of it.
file(GLOB man_pages CONFIGURE_DEPENDS docs/man/*.1)
install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)

# The command writes its own completions, from the tables that it parses its options with.
if(TARGET rewarm)
    set(completions ${CMAKE_CURRENT_BINARY_DIR}/completions)
    file(MAKE_DIRECTORY ${completions})
    foreach(shell bash zsh fish)
        add_custom_command(
            OUTPUT ${completions}/rewarm.${shell}
            COMMAND rewarm completion ${shell} > ${completions}/rewarm.${shell}
            DEPENDS rewarm)
        list(APPEND completion_files ${completions}/rewarm.${shell})
    endforeach()
    add_custom_target(completions ALL DEPENDS ${completion_files})
    install(FILES ${completions}/rewarm.bash
            DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME rewarm)
    install(FILES ${completions}/rewarm.zsh
            DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions RENAME _rewarm)
    install(FILES ${completions}/rewarm.fish
            DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
endif()

install(FILES LICENSE NEWS DESTINATION ${CMAKE_INSTALL_DOCDIR})

# Looked for when it is installed, not when this is configured: it may be made in between.
install(
    DIRECTORY ${REWARM_CRIU_BUNDLE}/
    DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/rewarm/criu
    USE_SOURCE_PERMISSIONS
    OPTIONAL)
install(
    CODE "if(NOT EXISTS \"${REWARM_CRIU_BUNDLE}/MANIFEST\")
    message(WARNING \"no CRIU bundle in ${REWARM_CRIU_BUNDLE} (tools/make-criu-bundle makes it): \"
                    \"the installed rewarm will use the criu in PATH, which must be 4.3 or newer\")
endif()")

# What `cmake --install` puts where, beside the command.
# tools/uninstall asks an installation into an empty folder what there is to remove, so that there is no
# second list of it.
file(GLOB man_pages CONFIGURE_DEPENDS docs/man/*.1)
install(FILES ${man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)

set(completions ${CMAKE_CURRENT_SOURCE_DIR}/completions)
install(FILES ${completions}/rewarm.bash
        DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME rewarm)
install(FILES ${completions}/_rewarm DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(FILES ${completions}/rewarm.fish
        DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)

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

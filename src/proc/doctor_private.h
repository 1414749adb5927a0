/* Shared by doctor.c and doctor_store.c; nobody else includes it. */
#ifndef REWARM_PROC_DOCTOR_PRIVATE_H
#define REWARM_PROC_DOCTOR_PRIVATE_H

#include "proc/host.h"

void rewarm_doctor_say(struct rewarm_doctor_line *line, enum rewarm_doctor_state state,
                       const char *detail, ...) __attribute__((format(printf, 3, 4)));
void rewarm_doctor_advise(struct rewarm_doctor_line *line, const char *advice, ...)
    __attribute__((format(printf, 2, 3)));

void rewarm_doctor_check_store(const char *store_path, struct rewarm_doctor_line *line);
void rewarm_doctor_check_space(const char *store_path, struct rewarm_doctor_line *line);
void rewarm_doctor_check_direct(const char *store_path, struct rewarm_doctor_line *line);

#endif

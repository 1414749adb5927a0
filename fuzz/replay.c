/* Runs a fuzz target over every file of the folders (or files) named, as an ordinary test. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static unsigned run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        exit(1);
    }
    struct stat st;
    if (fstat(fileno(file), &st) != 0)
        exit(1);
    size_t bytes = (size_t)st.st_size;
    /* Exactly the size: a read past the end is seen by the sanitizers. */
    uint8_t *data = malloc(bytes != 0 ? bytes : 1);
    if (data == NULL || fread(data, 1, bytes, file) != bytes)
        exit(1);
    fclose(file);
    LLVMFuzzerTestOneInput(data, bytes);
    free(data);
    return 1;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        if (dir == NULL) {
            count += run_file(argv[i]);
            continue;
        }
        for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
            if (entry->d_name[0] == '.')
                continue;
            char path[4096];
            snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name);
            count += run_file(path);
        }
        closedir(dir);
    }
    printf("%u inputs\n", count);
    return count != 0 ? 0 : 1; /* an empty corpus tests nothing */
}

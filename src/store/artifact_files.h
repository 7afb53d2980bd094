// Inside src/store/ only: the artifact store's own state, and what its files share: artifacts.c (buckets, objects) and artifact_uploads.c.
#pragma once

#include "store/artifacts.h"

#include <openssl/evp.h>
#include <pthread.h>

#define ARTIFACT_PATH_MAX 512

struct artifacts {
	struct store *store;
	char folder[300];
	uint64_t limit;       // of one object
	pthread_mutex_t lock; // of what follows
	uint64_t used;        // bytes of all files, those that are being written included
	uint64_t total_limit; // of `used`; 0: what the disk holds
};

struct object_writer {
	struct artifacts *a;
	char bucket[BUCKET_MAX], file[UUID_TEXT], etag[ETAG_MAX];
	int fd;
	uint64_t size;
	uint64_t looked_at; // size when the free space of the disk was looked at last
	struct object_condition condition;
	EVP_MD_CTX *md5; // NULL once the ETag is known
	bool kept;       // a record names the file
};

// A file that a record names, or named.
struct artifact_file {
	char name[UUID_TEXT]; // "": none
	uint64_t size;
};

// The path of a bucket's file, or of its folder when `file` is NULL.
void artifact_path(const struct artifacts *a, const char *bucket, const char *file, char to[ARTIFACT_PATH_MAX]);
// Removes a file whose record is gone.
void artifact_unlink(struct artifacts *a, const char *bucket, const struct artifact_file *file);
// Counts bytes that are about to be written, when the disk has room for them and, with `limited`, the store's limit has.
int artifact_reserve(struct object_writer *w, uint64_t size, bool limited, struct error *e);
// Names errors of the disk as S3 answers them. Returns the code.
int artifact_disk_error(int code, struct error *e);
// Puts the written bytes, and the file's name, on the disk.
int artifact_flush(struct object_writer *w, struct error *e);
// Inside a transaction: makes the writer's file the object's content, when its condition holds. `old`: the file that it replaces.
int artifact_put(struct object_writer *w, const char *key, const char *etag, const char *headers, struct artifact_file *old,
		 struct error *e);

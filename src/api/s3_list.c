// Lists: ListObjects (both versions), ListMultipartUploads, ListParts.
#include "api/s3.h"
#include "api/xml.h"
#include "base/base64.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX 1000 // of one page
#define LIST_TOKEN_MAX 2048

// Objects -----------------------------------------------------------------------------------------------------------------------------

struct listing {
	struct text contents, prefixes;
	size_t count;
	bool encode;
	const char *owner; // NULL: not to be said
};

static void add_key(struct text *t, const char *name, const char *key, bool encode) {
	if (!encode) {
		xml_element(t, name, key);
		return;
	}
	text_format(t, "<%s>", name);
	text_encode(t, key, strlen(key), true);
	text_format(t, "</%s>", name);
}

static int add_entry(const char *key, const struct object *o, void *arg) {
	struct listing *l = arg;
	l->count++;
	if (o == NULL) {
		text_puts(&l->prefixes, "<CommonPrefixes>");
		add_key(&l->prefixes, "Prefix", key, l->encode);
		text_puts(&l->prefixes, "</CommonPrefixes>");
		return 0;
	}
	char modified[32];
	s3_time(o->modified_ms, modified);
	text_puts(&l->contents, "<Contents>");
	add_key(&l->contents, "Key", key, l->encode);
	xml_element(&l->contents, "LastModified", modified);
	text_format(&l->contents, "<ETag>&quot;%s&quot;</ETag><Size>%llu</Size><StorageClass>STANDARD</StorageClass>", o->etag,
		    (unsigned long long)o->size);
	if (l->owner != NULL) {
		text_puts(&l->contents, "<Owner>");
		xml_element(&l->contents, "ID", l->owner);
		text_puts(&l->contents, "</Owner>");
	}
	text_puts(&l->contents, "</Contents>");
	return 0;
}

struct list_request {
	char *prefix, *delimiter, *after, *token, *encoding;
	bool second, owners; // ListObjectsV2; whether owners are asked for
	uint64_t limit;
};

static void list_request_clear(struct list_request *q) {
	free(q->prefix);
	free(q->delimiter);
	free(q->after);
	free(q->token);
	free(q->encoding);
}

static char *or_empty(char *s) {
	return s == NULL ? strdup("") : s;
}

static bool read_list_request(struct s3_call *c, struct list_request *q) {
	cleanup_free char *type = s3_query(c, "list-type");
	if (type != NULL && strcmp(type, "2") != 0) {
		s3_fail(c, "InvalidArgument", "Invalid List Type specified in Request");
		return false;
	}
	q->second = type != NULL;
	q->prefix = or_empty(s3_query(c, "prefix"));
	q->delimiter = or_empty(s3_query(c, "delimiter"));
	q->after = or_empty(s3_query(c, q->second ? "start-after" : "marker"));
	q->token = q->second ? s3_query(c, "continuation-token") : NULL;
	cleanup_free char *owners = s3_query(c, "fetch-owner");
	q->owners = !q->second || (owners != NULL && strcmp(owners, "true") == 0);
	q->encoding = s3_query(c, "encoding-type");
	if (q->prefix == NULL || q->delimiter == NULL || q->after == NULL) {
		s3_fail(c, "InternalError", "out of memory");
		return false;
	}
	q->limit = ENTRIES_MAX;
	if (!s3_query_number(c, "max-keys", ENTRIES_MAX, &q->limit))
		return false;
	if (q->encoding != NULL && strcmp(q->encoding, "url") != 0) {
		s3_fail(c, "InvalidArgument", "Invalid Encoding Method specified in Request");
		return false;
	}
	return true;
}

// The token is the key to go on behind, in base64: it tells its owner nothing that the list does not.
static bool read_token(struct s3_call *c, const char *token, char after[OBJECT_KEY_MAX + 1]) {
	ssize_t n = base64url_decode(after, OBJECT_KEY_MAX, token, strlen(token));
	if (n >= 0)
		after[n] = '\0';
	if (n > 0 && strlen(after) == (size_t)n)
		return true;
	s3_fail(c, "InvalidArgument", "The continuation token provided is incorrect");
	return false;
}

static void answer_list(struct s3_call *c, const struct list_request *q, const struct listing *l, bool more, const char *last) {
	cleanup_text t = {0};
	text_puts(&t, "<ListBucketResult xmlns=\"" S3_NAMESPACE "\">");
	xml_element(&t, "Name", c->bucket);
	add_key(&t, "Prefix", q->prefix, l->encode);
	if (q->delimiter[0] != '\0')
		add_key(&t, "Delimiter", q->delimiter, l->encode);
	text_format(&t, "<MaxKeys>%zu</MaxKeys><IsTruncated>%s</IsTruncated>", (size_t)q->limit, more ? "true" : "false");
	if (l->encode)
		xml_element(&t, "EncodingType", "url");
	if (q->second) {
		text_format(&t, "<KeyCount>%zu</KeyCount>", l->count);
		if (q->token != NULL)
			xml_element(&t, "ContinuationToken", q->token);
		if (q->after[0] != '\0')
			add_key(&t, "StartAfter", q->after, l->encode);
		if (more) {
			char token[LIST_TOKEN_MAX];
			base64url_encode(token, last, strlen(last));
			xml_element(&t, "NextContinuationToken", token);
		}
	} else {
		add_key(&t, "Marker", q->after, l->encode);
		if (more)
			add_key(&t, "NextMarker", last, l->encode);
	}
	text_add(&t, l->contents.data, l->contents.size);
	text_add(&t, l->prefixes.data, l->prefixes.size);
	text_puts(&t, "</ListBucketResult>");
	t.bad = t.bad || l->contents.bad || l->prefixes.bad;
	s3_answer_xml(c, 200, &t);
}

static void list(struct s3_call *c, const struct list_request *q) {
	char after[OBJECT_KEY_MAX + 1], last[OBJECT_KEY_MAX + 1];
	struct error e = {0};
	bool more = false;
	snprintf(after, sizeof(after), "%s", q->after);
	if (q->token != NULL && !read_token(c, q->token, after))
		return;
	struct listing l = {.encode = q->encoding != NULL, .owner = q->owners ? c->key.account : NULL};
	const struct object_list query = {
		.bucket = c->bucket, .prefix = q->prefix, .delimiter = q->delimiter, .after = after, .limit = q->limit};
	int r = artifacts_list(c->en->artifacts, &query, add_entry, &l, &more, last, &e);
	if (r < 0)
		s3_fail_with(c, &e);
	else
		answer_list(c, q, &l, more && q->limit > 0, last);
	free(l.contents.data);
	free(l.prefixes.data);
}

void s3_list_objects(struct s3_call *c) {
	struct list_request q = {.limit = 0};
	if (s3_own_bucket(c) && read_list_request(c, &q))
		list(c, &q);
	list_request_clear(&q);
}

// Multipart uploads -------------------------------------------------------------------------------------------------------------------

static void add_person(struct text *t, const char *name, const char *account) {
	text_format(t, "<%s>", name);
	xml_element(t, "ID", account);
	text_format(t, "</%s>", name);
}

struct upload_page {
	struct s3_call *c;
	const char *prefix, *delimiter;
	struct text uploads, prefixes;
	uint64_t left;
	bool encode, more;
	char folded[OBJECT_KEY_MAX + 1]; // the common prefix given last
	char key[OBJECT_KEY_MAX + 1];    // what the next page comes behind
	char id[UUID_TEXT];
};

static int add_upload(const struct upload *u, void *arg) {
	struct upload_page *p = arg;
	const char *cut = p->delimiter[0] == '\0' ? NULL : strstr(u->key + strlen(p->prefix), p->delimiter);
	size_t folded = cut == NULL ? 0 : (size_t)(cut - u->key) + strlen(p->delimiter);
	bool seen = folded > 0 && strlen(p->folded) == folded && strncmp(p->folded, u->key, folded) == 0;
	if (!seen && p->left == 0) {
		p->more = true;
		return 1;
	}
	snprintf(p->key, sizeof(p->key), "%s", u->key);
	snprintf(p->id, sizeof(p->id), "%s", u->id);
	if (seen)
		return 0;
	p->left--;
	if (folded > 0) {
		snprintf(p->folded, sizeof(p->folded), "%.*s", (int)folded, u->key);
		text_puts(&p->prefixes, "<CommonPrefixes>");
		add_key(&p->prefixes, "Prefix", p->folded, p->encode);
		text_puts(&p->prefixes, "</CommonPrefixes>");
		return 0;
	}
	char started[32];
	s3_time(u->created_ms, started);
	text_puts(&p->uploads, "<Upload>");
	add_key(&p->uploads, "Key", u->key, p->encode);
	xml_element(&p->uploads, "UploadId", u->id);
	add_person(&p->uploads, "Initiator", p->c->key.account);
	add_person(&p->uploads, "Owner", p->c->key.account);
	text_puts(&p->uploads, "<StorageClass>STANDARD</StorageClass>");
	xml_element(&p->uploads, "Initiated", started);
	text_puts(&p->uploads, "</Upload>");
	return 0;
}

static void answer_uploads(struct s3_call *c, const struct upload_page *p, const char *after_key, const char *after_id, uint64_t limit) {
	cleanup_text t = {0};
	text_puts(&t, "<ListMultipartUploadsResult xmlns=\"" S3_NAMESPACE "\">");
	xml_element(&t, "Bucket", c->bucket);
	add_key(&t, "KeyMarker", after_key, p->encode);
	xml_element(&t, "UploadIdMarker", after_id);
	if (p->more) {
		add_key(&t, "NextKeyMarker", p->key, p->encode);
		xml_element(&t, "NextUploadIdMarker", p->id);
	}
	add_key(&t, "Prefix", p->prefix, p->encode);
	if (p->delimiter[0] != '\0')
		add_key(&t, "Delimiter", p->delimiter, p->encode);
	if (p->encode)
		xml_element(&t, "EncodingType", "url");
	text_format(&t, "<MaxUploads>%llu</MaxUploads><IsTruncated>%s</IsTruncated>", (unsigned long long)limit,
		    p->more ? "true" : "false");
	text_add(&t, p->uploads.data, p->uploads.size);
	text_add(&t, p->prefixes.data, p->prefixes.size);
	text_puts(&t, "</ListMultipartUploadsResult>");
	t.bad = t.bad || p->uploads.bad || p->prefixes.bad;
	s3_answer_xml(c, 200, &t);
}

void s3_list_uploads(struct s3_call *c) {
	struct error e = {0};
	uint64_t limit = ENTRIES_MAX;
	if (!s3_own_bucket(c) || !s3_query_number(c, "max-uploads", ENTRIES_MAX, &limit))
		return;
	cleanup_free char *prefix = or_empty(s3_query(c, "prefix")), *delimiter = or_empty(s3_query(c, "delimiter")),
			  *key = or_empty(s3_query(c, "key-marker")), *id = s3_query(c, "upload-id-marker"),
			  *encoding = s3_query(c, "encoding-type");
	struct upload_page p = {.c = c, .prefix = prefix, .delimiter = delimiter, .left = limit, .encode = encoding != NULL};
	if (prefix == NULL || delimiter == NULL || key == NULL) {
		s3_fail(c, "InternalError", "out of memory");
		return;
	}
	// Without the upload's id, what follows is behind all uploads of the key. A page that ended with a common prefix ended behind all of it.
	const char *cut =
		delimiter[0] == '\0' || strncmp(key, prefix, strlen(prefix)) != 0 ? NULL : strstr(key + strlen(prefix), delimiter);
	if (cut != NULL)
		snprintf(p.folded, sizeof(p.folded), "%.*s", (int)((size_t)(cut - key) + strlen(delimiter)), key);
	const char *from = id != NULL ? id : key[0] == '\0' ? "" : "\x7f";
	if (artifacts_list_uploads(c->en->artifacts, c->bucket, prefix, key, from, add_upload, &p, &e) < 0)
		s3_fail_with(c, &e);
	else
		answer_uploads(c, &p, key, id == NULL ? "" : id, limit);
	free(p.uploads.data);
	free(p.prefixes.data);
}

struct part_page {
	struct text t;
	int last;
};

static int add_part(const struct upload_part *u, void *arg) {
	struct part_page *p = arg;
	char modified[32];
	s3_time(u->modified_ms, modified);
	p->last = u->number;
	text_format(&p->t,
		    "<Part><PartNumber>%d</PartNumber><LastModified>%s</LastModified><ETag>&quot;%s&quot;</ETag><Size>%llu</Size></Part>",
		    u->number, modified, u->etag, (unsigned long long)u->size);
	return 0;
}

void s3_list_parts(struct s3_call *c) {
	struct error e = {0};
	uint64_t limit = ENTRIES_MAX, after = 0;
	bool more = false;
	if (!s3_own_bucket(c) || !s3_query_number(c, "max-parts", ENTRIES_MAX, &limit) ||
	    !s3_query_number(c, "part-number-marker", 10000, &after))
		return;
	cleanup_free char *id = s3_query(c, "uploadId");
	struct part_page p = {.last = (int)after};
	cleanup_text t = {0};
	if (artifacts_list_parts(c->en->artifacts, c->bucket, c->object, id, (int)after, limit, add_part, &p, &more, &e) < 0) {
		free(p.t.data);
		s3_fail_with(c, &e);
		return;
	}
	text_puts(&t, "<ListPartsResult xmlns=\"" S3_NAMESPACE "\">");
	xml_element(&t, "Bucket", c->bucket);
	xml_element(&t, "Key", c->object);
	xml_element(&t, "UploadId", id);
	add_person(&t, "Initiator", c->key.account);
	add_person(&t, "Owner", c->key.account);
	text_format(&t,
		    "<StorageClass>STANDARD</StorageClass><PartNumberMarker>%llu</PartNumberMarker><MaxParts>%llu</MaxParts>"
		    "<IsTruncated>%s</IsTruncated>",
		    (unsigned long long)after, (unsigned long long)limit, more ? "true" : "false");
	if (more)
		text_format(&t, "<NextPartNumberMarker>%d</NextPartNumberMarker>", p.last);
	text_add(&t, p.t.data, p.t.size);
	text_puts(&t, "</ListPartsResult>");
	t.bad = t.bad || p.t.bad;
	free(p.t.data);
	s3_answer_xml(c, 200, &t);
}

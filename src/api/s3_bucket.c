// Buckets: ListBuckets, CreateBucket, DeleteBucket, HeadBucket, GetBucketLocation, ListObjects (both versions), DeleteObjects.
#include "api/s3.h"
#include "api/xml.h"
#include "base/base64.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX 1000           // of one page, and of one DeleteObjects
#define DOCUMENT_MAX (4u << 20) // bytes of a DeleteObjects request
#define LIST_TOKEN_MAX 2048

static void open_root(struct text *t, const char *name) {
	text_format(t, "<%s xmlns=\"" S3_NAMESPACE "\">", name);
}

static int add_bucket(const struct bucket *b, void *arg) {
	char created[32];
	s3_time(b->created_ms, created);
	text_puts(arg, "<Bucket>");
	xml_element(arg, "Name", b->name);
	xml_element(arg, "CreationDate", created);
	text_puts(arg, "</Bucket>");
	return 0;
}

void s3_list_buckets(struct s3_call *c) {
	cleanup_text t = {0};
	struct error e = {0};
	open_root(&t, "ListAllMyBucketsResult");
	text_puts(&t, "<Owner>");
	xml_element(&t, "ID", c->key.account);
	text_puts(&t, "</Owner><Buckets>");
	if (artifacts_list_buckets(c->en->artifacts, c->key.account, add_bucket, &t, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	text_puts(&t, "</Buckets></ListAllMyBucketsResult>");
	s3_answer_xml(c, 200, &t);
}

void s3_create_bucket(struct s3_call *c) {
	// The document may name a region; every region is here.
	cleanup_text document = {0};
	struct error e = {0};
	if (s3_take_text(c, 4096, &document) < 0)
		return;
	if (artifacts_create_bucket(c->en->artifacts, c->key.account, c->bucket, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	exchange_header(c->x, "location", "/%s", c->bucket);
	exchange_reply(c->x, 200, NULL, 0);
}

void s3_delete_bucket(struct s3_call *c) {
	struct error e = {0};
	if (artifacts_delete_bucket(c->en->artifacts, c->key.account, c->bucket, &e) < 0)
		s3_fail_with(c, &e);
	else
		exchange_reply(c->x, 204, NULL, 0);
}

void s3_head_bucket(struct s3_call *c) {
	if (!s3_own_bucket(c))
		return;
	exchange_header(c->x, "x-amz-bucket-region", "%s", c->en->config.region);
	exchange_reply(c->x, 200, NULL, 0);
}

void s3_get_location(struct s3_call *c) {
	if (!s3_own_bucket(c))
		return;
	cleanup_text t = {0};
	open_root(&t, "LocationConstraint");
	// The oldest region has no name here.
	xml_escape(&t, strcmp(c->en->config.region, "us-east-1") == 0 ? "" : c->en->config.region);
	text_puts(&t, "</LocationConstraint>");
	s3_answer_xml(c, 200, &t);
}

// Listing -----------------------------------------------------------------------------------------------------------------------------

struct listing {
	struct text contents, prefixes;
	size_t count;
	bool encode;
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
	text_format(&l->contents, "<ETag>&quot;%s&quot;</ETag><Size>%llu</Size><StorageClass>STANDARD</StorageClass></Contents>", o->etag,
		    (unsigned long long)o->size);
	return 0;
}

struct list_request {
	char *prefix, *delimiter, *after, *token, *max_keys, *encoding;
	bool second; // ListObjectsV2
	size_t limit;
};

static void list_request_clear(struct list_request *q) {
	free(q->prefix);
	free(q->delimiter);
	free(q->after);
	free(q->token);
	free(q->max_keys);
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
	q->max_keys = s3_query(c, "max-keys");
	q->encoding = s3_query(c, "encoding-type");
	if (q->prefix == NULL || q->delimiter == NULL || q->after == NULL) {
		s3_fail(c, "InternalError", "out of memory");
		return false;
	}
	q->limit = KEYS_MAX;
	if (q->max_keys != NULL) {
		char *end;
		unsigned long n = strtoul(q->max_keys, &end, 10);
		if (q->max_keys[0] < '0' || q->max_keys[0] > '9' || *end != '\0') {
			s3_fail(c, "InvalidArgument", "Provided max-keys not an integer or within integer range");
			return false;
		}
		q->limit = n < KEYS_MAX ? n : KEYS_MAX;
	}
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
	open_root(&t, "ListBucketResult");
	xml_element(&t, "Name", c->bucket);
	add_key(&t, "Prefix", q->prefix, l->encode);
	if (q->delimiter[0] != '\0')
		add_key(&t, "Delimiter", q->delimiter, l->encode);
	text_format(&t, "<MaxKeys>%zu</MaxKeys><IsTruncated>%s</IsTruncated>", q->limit, more ? "true" : "false");
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
	struct listing l = {.encode = q->encoding != NULL};
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

// DeleteObjects -----------------------------------------------------------------------------------------------------------------------

static bool take_delete_element(void *arg, const char *path, const char *value) {
	struct s3_delete_request *r = arg;
	if (strcmp(path, "Delete/Quiet") == 0) {
		r->quiet = strcmp(value, "true") == 0;
	} else if (strcmp(path, "Delete/Object/Key") == 0) {
		if (r->count == KEYS_MAX || value[0] == '\0' || strlen(value) > OBJECT_KEY_MAX ||
		    (r->keys[r->count] = strdup(value)) == NULL)
			return false;
		r->count++;
	}
	return true;
}

int s3_parse_delete(const char *data, size_t size, struct s3_delete_request *ret) {
	*ret = (struct s3_delete_request){.count = 0};
	int r = xml_read(data, size, take_delete_element, ret);
	if (r == 0 && ret->count > 0)
		return 0;
	s3_delete_request_clear(ret);
	return -EBADMSG;
}

void s3_delete_request_clear(struct s3_delete_request *r) {
	for (size_t i = 0; i < r->count; i++)
		free(r->keys[i]);
	r->count = 0;
}

static void delete_keys(struct s3_call *c, const struct s3_delete_request *r) {
	cleanup_text t = {0};
	open_root(&t, "DeleteResult");
	for (size_t i = 0; i < r->count; i++) {
		struct error e = {0};
		int done = s3_allowed(c, "s3:DeleteObject", c->bucket, r->keys[i], &e);
		if (done == 0)
			done = artifacts_delete_object(c->en->artifacts, c->bucket, r->keys[i], &e);
		if (done < 0) {
			text_puts(&t, "<Error>");
			xml_element(&t, "Key", r->keys[i]);
			xml_element(&t, "Code", done == -EACCES ? "AccessDenied" : "InternalError");
			xml_element(&t, "Message", e.message);
			text_puts(&t, "</Error>");
		} else if (!r->quiet) {
			text_puts(&t, "<Deleted>");
			xml_element(&t, "Key", r->keys[i]);
			text_puts(&t, "</Deleted>");
		}
	}
	text_puts(&t, "</DeleteResult>");
	s3_answer_xml(c, 200, &t);
}

void s3_delete_objects(struct s3_call *c) {
	cleanup_text document = {0};
	cleanup_free struct s3_delete_request *r = malloc(sizeof(*r));
	if (r == NULL || !s3_own_bucket(c) || s3_take_text(c, DOCUMENT_MAX, &document) < 0)
		return;
	if (s3_parse_delete(document.data, document.size, r) < 0) {
		s3_fail(c, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema");
		return;
	}
	delete_keys(c, r);
	s3_delete_request_clear(r);
}

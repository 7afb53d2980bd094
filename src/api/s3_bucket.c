// Buckets: ListBuckets, CreateBucket, DeleteBucket, HeadBucket, GetBucketLocation, GetBucketVersioning, DeleteObjects.
#include "api/s3.h"
#include "api/xml.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEYS_MAX 1000           // of one DeleteObjects
#define DOCUMENT_MAX (4u << 20) // bytes of a DeleteObjects request
#define BUCKETS_MAX 10000       // of one page

static void open_root(struct text *t, const char *name) {
	text_format(t, "<%s xmlns=\"" S3_NAMESPACE "\">", name);
}

struct bucket_page {
	struct text *t;
	const char *prefix;
	uint64_t left;
	char last[BUCKET_MAX]; // what the next page comes behind
	bool more;
};

static int add_bucket(const struct bucket *b, void *arg) {
	struct bucket_page *p = arg;
	char created[32];
	if (strncmp(b->name, p->prefix, strlen(p->prefix)) != 0)
		return 0;
	if (p->left == 0) {
		p->more = true;
		return 1;
	}
	p->left--;
	memcpy(p->last, b->name, sizeof(p->last));
	s3_time(b->created_ms, created);
	text_puts(p->t, "<Bucket>");
	xml_element(p->t, "Name", b->name);
	xml_element(p->t, "CreationDate", created);
	text_puts(p->t, "</Bucket>");
	return 0;
}

void s3_list_buckets(struct s3_call *c) {
	cleanup_text t = {0};
	struct error e = {0};
	cleanup_free char *prefix = s3_query(c, "prefix"), *token = s3_query(c, "continuation-token");
	struct bucket_page p = {.t = &t, .prefix = prefix == NULL ? "" : prefix, .left = BUCKETS_MAX};
	if (!s3_query_number(c, "max-buckets", BUCKETS_MAX, &p.left))
		return;
	if (token != NULL && !artifacts_bucket_name_is_valid(token)) {
		s3_fail(c, "InvalidArgument", "The continuation token provided is incorrect");
		return;
	}
	open_root(&t, "ListAllMyBucketsResult");
	text_puts(&t, "<Owner>");
	xml_element(&t, "ID", c->key.account);
	text_puts(&t, "</Owner><Buckets>");
	if (artifacts_list_buckets(c->en->artifacts, c->key.account, token == NULL ? "" : token, add_bucket, &p, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	text_puts(&t, "</Buckets>");
	if (p.prefix[0] != '\0')
		xml_element(&t, "Prefix", p.prefix);
	if (p.more)
		xml_element(&t, "ContinuationToken", p.last);
	text_puts(&t, "</ListAllMyBucketsResult>");
	s3_answer_xml(c, 200, &t);
}

// There are no versions: none was ever switched on.
void s3_get_versioning(struct s3_call *c) {
	cleanup_text t = {0};
	if (!s3_own_bucket(c))
		return;
	open_root(&t, "VersioningConfiguration");
	text_puts(&t, "</VersioningConfiguration>");
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
			done = artifacts_delete_object(c->en->artifacts, c->bucket, r->keys[i], NULL, &e);
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

// The metadata store: accounts' keys and roles, images, versions, builds, microVMs. SQLite behind; nothing outside src/store/ sees SQL.
//
// Every function that changes something has committed it durably when it returns 0. All are thread-safe (one connection behind a
// mutex), may block on the disk, and are therefore called from worker threads, except where noted. Records are plain structs; strings
// that may be long are heap-allocated and released by the record's *_clear(). -ENOENT: no such record; -EEXIST: the name is taken.
#pragma once

#include "base/error.h"
#include "base/uuid.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARN_MAX 256
#define NAME_MAX_BYTES 65
#define VERSION_TEXT 16
#define STATE_TEXT 20
#define REASON_MAX 512

struct store; // opaque

int store_open(const char *folder, struct store **ret, struct error *e);
void store_close(struct store *s);

// Access keys and roles, keys.c. They lie in memory as well: looking one up waits for no disk.
#define STORE_KEYS_MAX 10000
#define STORE_ROLES_MAX 1000
struct store_key {
	char id[129];     // access key id
	char secret[129]; // secret access key
	char account[13];
	char name[65];   // what the operator calls it; may be empty
	bool configured; // comes from the configuration, and goes with it
	bool disabled;
	int64_t created_ms; // since the epoch
	char *policy;       // what it may do (src/api/policy.h); NULL: nothing
};
void store_key_clear(struct store_key *k);                                                  // also wipes the secret
int store_put_key(struct store *s, const struct store_key *k, struct error *e);             // adds or replaces; -ENOSPC: too many
int store_get_key(struct store *s, const char *id, struct store_key *ret, struct error *e); // a copy to clear
int store_delete_key(struct store *s, const char *id, struct error *e);
// Removes the keys of earlier configurations: all configured ones but `id` ("": none stays).
int store_keep_configured_key(struct store *s, const char *id, struct error *e);

struct store_role {
	char arn[ARN_MAX];
	bool configured;
	int64_t created_ms;
	char *policy;
};
void store_role_clear(struct store_role *r);
int store_put_role(struct store *s, const struct store_role *r, struct error *e);
int store_get_role(struct store *s, const char *arn, struct store_role *ret, struct error *e);
int store_delete_role(struct store *s, const char *arn, struct error *e);
bool store_has_roles(struct store *s);

struct store_image {
	char uuid[UUID_TEXT];
	char account[13];
	char name[NAME_MAX_BYTES];
	char arn[ARN_MAX];
	char state[STATE_TEXT];                   // CREATING, CREATED, CREATE_FAILED, UPDATING, …, DELETING
	char latest_active_version[VERSION_TEXT]; // empty: none
	char latest_failed_version[VERSION_TEXT];
	int64_t created_ms, updated_ms; // since the epoch
	int64_t last_version;           // the highest number that a version of it ever had
	char *tags;                     // JSON object
};

struct store_version {
	char image_uuid[UUID_TEXT];
	char version[VERSION_TEXT]; // "1.0"
	char state[STATE_TEXT];     // PENDING, IN_PROGRESS, SUCCESSFUL, FAILED, DELETING, DELETE_FAILED
	char status[STATE_TEXT];    // ACTIVE, INACTIVE
	char state_reason[REASON_MAX];
	int64_t created_ms, updated_ms;
	char *config; // JSON object: the members of the create request, defaults filled in
};

struct store_build {
	char build_id[UUID_TEXT];
	char image_uuid[UUID_TEXT];
	char version[VERSION_TEXT];
	char state[STATE_TEXT]; // PENDING, IN_PROGRESS, SUCCESSFUL, FAILED
	char architecture[16];  // X86_64
	char state_reason[REASON_MAX];
	int64_t created_ms, ended_ms;
	int64_t memory_bytes, code_bytes, disk_bytes; // -1: unknown
};

struct store_microvm {
	char id[48]; // "microvm-<uuid>"
	char account[13];
	char endpoint[UUID_TEXT]; // the endpoint's own UUID
	char image_uuid[UUID_TEXT];
	char image_arn[ARN_MAX];
	char version[VERSION_TEXT];
	char state[STATE_TEXT]; // PENDING, RUNNING, SUSPENDING, SUSPENDED, TERMINATING, TERMINATED
	char state_reason[REASON_MAX];
	int64_t started_ms, terminated_ms; // 0: not yet
	int64_t maximum_duration_s;
	bool has_idle_policy;
	int64_t max_idle_s, suspended_s;
	bool auto_resume;
	int64_t suspended_at_ms; // 0: not suspended
	int64_t tokens_since_ms; // tokens that were minted before are revoked; 0: none
	char vmm[UUID_TEXT];     // the slot of stasis-launch that runs it; empty: none
	char *config;            // JSON object: the members of the Run request, defaults filled in
};

void store_image_clear(struct store_image *r);
void store_version_clear(struct store_version *r);
void store_build_clear(struct store_build *r);
void store_microvm_clear(struct store_microvm *r);

// Idempotency. What a call with a client token answered, committed with what it made and kept for at least 24 hours, whatever becomes of
// that. A token is its account's and its operation's.
#define STORE_DIGEST 65
struct store_token {
	const char *account, *operation, *token;
	const char *digest; // of the rest of the request, hexadecimal
	char *answer;       // JSON
};
// -ENOENT: the token is new. The caller frees *ret_answer.
int store_get_token(struct store *s, const char *account, const char *operation, const char *token, char digest[STORE_DIGEST],
		    char **ret_answer, struct error *e);

// Images. What is not a plain read is one transaction: it checks that the change is permitted, and makes it. An image in CREATED, CREATE_FAILED,
// UPDATED or UPDATE_FAILED is at rest; in any other state -EBUSY is returned and `state` says which it is. latest_active_version and
// latest_failed_version always name the newest version that is usable (SUCCESSFUL and ACTIVE) or FAILED. `token` NULL: none; functions with
// one return -EDQUOT (named ThrottlingException) when the account has used too many.

// Image, version and build at once; -EEXIST when the account has an image of that name.
int store_add_image(struct store *s, const struct store_image *image, const struct store_version *v, const struct store_build *b,
		    const struct store_token *token, struct error *e);
// A further version of an image at rest, which becomes UPDATING: the number of `v` must be the image's last_version + 1 (-EAGAIN otherwise).
int store_add_version(struct store *s, const struct store_version *v, const struct store_build *b, const struct store_token *token,
		      char state[STATE_TEXT], struct error *e);
int store_get_image_by_arn(struct store *s, const char *arn, struct store_image *ret, struct error *e);
int store_get_image(struct store *s, const char *uuid, struct store_image *ret, struct error *e);
// Merges `patch` into the tags: members that are null are removed, others set. -E2BIG: there would be more than STORE_TAGS_MAX.
#define STORE_TAGS_MAX 50
int store_patch_image_tags(struct store *s, const char *uuid, const char *patch, struct error *e);

int store_get_version(struct store *s, const char *image_uuid, const char *version, struct store_version *ret, struct error *e);
// ACTIVE or INACTIVE; the first only for a SUCCESSFUL version (-EINVAL). The image must be at rest.
int store_set_version_status(struct store *s, const char *image_uuid, const char *version, const char *status, int64_t now_ms,
			     char state[STATE_TEXT], struct error *e);
int store_get_build(struct store *s, const char *image_uuid, const char *version, const char *build_id, struct store_build *ret,
		    struct error *e);

// The version's build begins: both are IN_PROGRESS.
int store_begin_build(struct store *s, const struct store_version *v, const struct store_build *b, struct error *e);
// Its end: state, status, reason, times and sizes of version and build, state and time of the image.
int store_finish_build(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		       struct error *e);

// Deletion of an image, or of one version, in two steps. The first marks it DELETING (and the image of a version UPDATING); the caller then
// removes the files, and the second forgets the record. -EALREADY: somebody is at it; -ETXTBSY: a living microVM needs it; -EBUSY as above, but
// an image in DELETE_FAILED, too, may be deleted; for versions -ENOENT, and -EPERM: it is the image's only one.
int store_begin_delete_image(struct store *s, const char *uuid, int64_t now_ms, char state[STATE_TEXT], struct error *e);
int store_delete_image(struct store *s, const char *uuid, struct error *e); // with its versions and builds
int store_begin_delete_version(struct store *s, const char *image_uuid, const char *version, int64_t now_ms, char state[STATE_TEXT],
			       struct error *e);
int store_delete_version(struct store *s, const char *image_uuid, const char *version, int64_t now_ms,
			 struct error *e); // the image is UPDATED
// Instead of the second step, when files could not be removed: DELETE_FAILED, and the image of a version UPDATE_FAILED. version NULL: the image.
int store_fail_delete(struct store *s, const char *image_uuid, const char *version, const char *reason, int64_t now_ms, struct error *e);

// -ENOENT: the version is not (or no longer) usable.
int store_add_microvm(struct store *s, const struct store_microvm *r, const struct store_token *token, struct error *e);
int store_update_microvm(struct store *s, const struct store_microvm *r, struct error *e); // state, reason, times, vmm
// The same without waiting for the disk: it survives a crash of the daemon at once, a power cut only from the next flushed change on. For the
// changes after which a power cut leads to the same end either way (a microVM that runs, or is being suspended, ends with its host).
int store_update_microvm_soon(struct store *s, const struct store_microvm *r, struct error *e);
int store_set_tokens_since(struct store *s, const char *id, int64_t since_ms, struct error *e);
int store_get_microvm(struct store *s, const char *id, struct store_microvm *ret, struct error *e);
int store_get_microvm_by_endpoint(struct store *s, const char *endpoint, struct store_microvm *ret, struct error *e);

// Lists, newest first, at most `limit` records after the position `after` (opaque text that an earlier call put into `next`; NULL or ""
// starts). The callback gets each record, which stays the store's; return non-zero to stop. next is "" behind the last page.
#define STORE_CURSOR_MAX 64
int store_list_images(struct store *s, const char *account, const char *after, size_t limit,
		      int (*each)(const struct store_image *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e);
int store_list_versions(struct store *s, const char *image_uuid, const char *after, size_t limit,
			int (*each)(const struct store_version *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e);
int store_list_builds(struct store *s, const char *image_uuid, const char *version, const char *after, size_t limit,
		      int (*each)(const struct store_build *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e);
// Of keys and roles, by id and ARN; the position is the last one given.
int store_list_keys(struct store *s, const char *after, size_t limit, int (*each)(const struct store_key *, void *), void *arg,
		    struct error *e);
int store_list_roles(struct store *s, const char *after, size_t limit, int (*each)(const struct store_role *, void *), void *arg,
		     struct error *e);
struct store_microvm_filter {
	const char *account;   // NULL: all
	const char *image_arn; // NULL: all
	const char *version;   // NULL: all
	bool living;           // only those not TERMINATED
};
int store_list_microvms(struct store *s, const struct store_microvm_filter *f, const char *after, size_t limit,
			int (*each)(const struct store_microvm *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e);

// Ports of images that are public: requests to them need no token. -ENOENT: no such image; -EDQUOT: it has STORE_PUBLIC_PORTS_MAX already.
#define STORE_PUBLIC_PORTS_MAX 16
int store_set_public_port(struct store *s, const char *image_uuid, uint16_t port, bool on, struct error *e);
size_t store_public_ports(struct store *s, const char *image_uuid, uint16_t ret[static STORE_PUBLIC_PORTS_MAX]); // from memory, sorted
// From memory: `port` if it is public; for 0, 8080 if that is, or else the lowest. 0: none.
uint16_t store_public_port(struct store *s, const char *image_uuid, uint16_t port);

// Network connectors (spec section 7.3). A deleted one has the state DELETED and is found by its id alone; the newest
// STORE_DELETED_CONNECTORS_MAX of an account are kept.
#define STORE_DELETED_CONNECTORS_MAX 1000
#define CONNECTOR_ID_MAX 48
struct store_connector {
	char id[CONNECTOR_ID_MAX]; // "nc-<uuid>"
	char account[13];
	char name[NAME_MAX_BYTES];
	char arn[ARN_MAX];
	char state[STATE_TEXT]; // PENDING, ACTIVE, INACTIVE, FAILED, DELETING, DELETED
	char state_reason[REASON_MAX], state_code[STATE_TEXT];
	int64_t version; // counts configurations
	int64_t created_ms, modified_ms;
	char update_status[STATE_TEXT]; // Successful, Failed, InProgress; empty: never updated
	char update_reason[REASON_MAX], update_code[STATE_TEXT];
	char *config;  // JSON object: Configuration, OperatorRole
	char *pending; // the same of an update under way; NULL: none
	char *tags;    // JSON object
};
void store_connector_clear(struct store_connector *r);

// -EEXIST: the account has one of that name; -EDQUOT: it has `limit` of them already.
int store_add_connector(struct store *s, const struct store_connector *r, int64_t limit, const struct store_token *token, struct error *e);
// All but id, account, name, ARN and tags.
int store_update_connector(struct store *s, const struct store_connector *r, const struct store_token *token, struct error *e);
int store_patch_connector_tags(struct store *s, const char *id, const char *patch, struct error *e); // as those of images
int store_get_connector(struct store *s, const char *account, const char *id, struct store_connector *ret, struct error *e);
int store_get_connector_by_name(struct store *s, const char *account, const char *name, struct store_connector *ret, struct error *e);
// DELETING, unless a microVM that lives or an image version that is not FAILED names it: -EBUSY, with a message that says which.
int store_delete_connector(struct store *s, const struct store_connector *r, struct error *e);
// DELETED; forgets the oldest deleted ones.
int store_bury_connector(struct store *s, const struct store_connector *r, int64_t now_ms, struct error *e);
// Newest first, without deleted ones. account NULL: all; state NULL: all.
int store_list_connectors(struct store *s, const char *account, const char *state, const char *after, size_t limit,
			  int (*each)(const struct store_connector *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e);

// Stages: how long each step of a build, run, suspend or resume took. The subject is a microVM's id, or "<image uuid>/<version>" for a
// build. They are observations, not state: a stage survives a crash of the daemon at once, a power cut only from the next change on (so
// that timing a launch costs no flush). The newest STORE_STAGES_MAX of a subject are kept. Listed oldest first; subject's stages go with
// their image.
#define STORE_STAGES_MAX 256
struct store_stage {
	char name[48];
	int64_t started_ms; // since the epoch
	int64_t duration_us;
	char detail[128]; // "" when there is nothing to say
};
int store_add_stage(struct store *s, const char *subject, const char *name, int64_t started_ms, int64_t duration_us, const char *detail,
		    struct error *e);
int store_list_stages(struct store *s, const char *subject, int (*each)(const struct store_stage *, void *), void *arg, struct error *e);

// Temporary credentials of a microVM's execution role, sessions.c. They are sealed in their own token and recorded nowhere: any stasisd of this
// store accepts them until they expire, as long as whoever asks also sees that the microVM lives.
#define SESSION_TOKEN_ROOM 256
struct store_session {
	char key_id[32];
	char secret[64];
	char microvm[48];
	int64_t expires_ms; // since the epoch
};
int store_mint_session(struct store *s, const char *microvm, int64_t expires_ms, struct store_session *ret, char token[SESSION_TOKEN_ROOM],
		       struct error *e);
// -EBADMSG: not a token of ours, or of another key than key_id. Does not look at the time.
int store_open_session(struct store *s, const char *key_id, const char *token, size_t size, struct store_session *ret, struct error *e);

// What an account uses of its quotas; versions are those of the image, if one is given.
struct store_usage {
	int64_t memory_mib;               // of microVMs that are not TERMINATED, as their images ask for it
	int64_t images, versions, builds; // builds: that are not over
};
int store_get_usage(struct store *s, const char *account, const char *image_uuid, struct store_usage *ret, struct error *e);
// Memory of all microVMs that are neither SUSPENDED nor TERMINATED.
int store_get_awake(struct store *s, int64_t *ret_memory_mib, struct error *e);

// A secret of the engine: `size` random bytes, made at the first call under that name and the same ever after.
int store_secret(struct store *s, const char *name, void *ret, size_t size, struct error *e);

// How many there are, for the status of the engine.
struct store_counts {
	int64_t images, versions, microvms_pending, microvms_running, microvms_suspended, microvms_terminated, microvms_other;
};
int store_count(struct store *s, struct store_counts *ret, struct error *e);

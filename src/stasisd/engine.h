// What there is once in a running stasisd, handed to every module: configuration, store, loop, workers, launcher.
#pragma once

#include "base/error.h"
#include "store/store.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

// The engine's configuration: one JSON object in the file given with --config. Members not given have the defaults named here.
struct config {
	char state_folder[256];  // "stateFolder": /var/lib/stasis
	char run_folder[64];     // "runFolder": /run/stasis
	char assets_folder[256]; // "assetsFolder": where vmlinuz, guest.initrd, system.ext4, builder.ext4, bases.ext4 lie
	char api_listen[64];     // "apiListen": 127.0.0.1:7411
	char s3_listen[64];      // "artifactsListen": 127.0.0.1:7412
	char edge_listen[64];    // "edgeListen": 127.0.0.1:7443
	char edge_domain[128];   // "edgeDomain": microvm.localhost
	int edge_public_port;    // "edgePublicPort": 7443; 443 is left out of endpoint names
	char region[32];         // "region": us-east-1
	char account[13];        // "account": 000000000000
	char key_id[129];        // "accessKeyId", "secretAccessKey": the first key, put into the store at every start
	char key_secret[129];
	char s3_endpoint[256]; // "s3Endpoint": empty: the built-in store. With "s3AccessKeyId", "s3SecretAccessKey", "s3Region"
	char s3_key_id[129];
	char s3_key_secret[129];
	char s3_region[32];
	char s3_addressing[8];        // "s3Addressing": path; or virtual: the bucket as first label of the endpoint's host
	char artifacts_domain[128];   // "artifactsDomain": localhost; <bucket>.<domain> names a bucket of the built-in store
	int64_t artifact_store_limit; // "artifactStoreLimitBytes": 0; all objects together; 0: what the disk holds
	double default_timeout_scale; // "defaultTimeoutScale": 1; multiplies hook time-outs that nobody set (the machine: 10)
	char base_alias[512];         // "baseAliases": JSON object, FROM name → base image name
	char default_base[32];        // "defaultBase": debian; what AWS's managed base name means
	char nameservers[256];        // "nameservers": comma-separated; empty: those of /etc/resolv.conf
	int64_t artifact_limit;       // "artifactLimitBytes": 1 GiB
	int64_t image_disk_limit;     // "imageDiskBytes": 8 GiB
	int64_t builder_memory_mib;   // "builderMemoryMib": 2048
	int builder_vcpus;            // "builderVcpus": 2
	int concurrent_builds;        // "concurrentBuilds": 1
	int64_t build_limit_s;        // "buildLimitSeconds": 3600; a build that takes longer fails
	char metrics_token[129];      // "metricsToken": with it as bearer token the metrics may be read; empty: only by signed calls
	char log_level[8];            // "logLevel": info; debug, info, warn, error
	int64_t microvm_log_bytes;    // "microvmLogBytes": 8 MiB; the newest of what an application writes
	int64_t build_log_bytes;      // "buildLogBytes": 16 MiB; the same of a build
	int64_t log_retention_s;      // "logRetentionSeconds": 604800; how long logs of microVMs stay after their end
	int64_t log_total_bytes;      // "logTotalBytes": 1 GiB; all logs of microVMs that have ended
	char cloudwatch_endpoint
		[256]; // "cloudWatchEndpoint": empty: logs are not pushed. With "cloudWatchAccessKeyId", "cloudWatchSecretAccessKey"
	char cloudwatch_key_id[129];
	char cloudwatch_key_secret[129];
	char cloudwatch_region[32]; // "cloudWatchRegion": us-east-1
	char cloudwatch_runtime[8]; // "cloudWatchRuntime": role: logs of microVMs with an execution role only; always
	char networks[16384]; // "networks": JSON object, subnet id → what it leads to; what it means is stasis-launch's (launch/networks.h)
	char roles[16384];    // "roles": JSON object, role ARN → policy
	char quotas[8192];    // "quotas": JSON object, account or "default" → limits (src/api/quota.h)
	int connections_per_vcpu;     // "connectionsPerVcpu": 1024; requests and tunnels of a microVM that may be open at once; 0: no limit
	int requests_per_s_per_vcpu;  // "requestsPerSecondPerVcpu": 0: no limit
	int64_t bytes_per_s_per_vcpu; // "bytesPerSecondPerVcpu": 0: no limit; through the edge, both ways together
	int64_t maximum_duration_s;   // "maximumDurationSeconds": 28800; the most that a Run may ask for
	int64_t host_memory_mib;      // "hostMemoryMib": 0; of all microVMs that are awake together; 0: no limit
	int64_t host_reserve_mib;     // "hostReserveMib": 128; none is run or woken while less memory is available; 0: not looked at
};

// Reads and checks the file: unknown members, wrong types and values out of range are refused by name.
int config_read(const char *path, struct config *ret, struct error *e);
// The same from text; `name` stands for the file in messages.
int config_parse(const char *text, size_t size, const char *name, struct config *ret, struct error *e);

struct launcher;   // src/microvms/launcher.h: the connection to stasis-launch
struct watcher;    // src/microvms/watcher.h: the thread that waits for what VMMs, guests and stasis-launch say by themselves
struct loop_queue; // src/stasisd/workers.c

struct engine {
	struct config config;
	struct store *store;
	uv_loop_t *loop;
	struct loop_queue *queue;
	struct watcher *watcher;
	struct launcher *launcher;
	struct microvms *microvms;   // src/microvms/
	struct images *images;       // src/images/
	struct edge *edge;           // src/edge/
	struct api *api;             // src/api/
	struct artifacts *artifacts; // src/store/artifacts.h
	struct logs *logs;           // src/logs/
	struct quotas *quotas;       // src/api/quota.h
	char version[32];
};

// Runs fn(arg) on a worker thread. Workers are made as needed, at most 512; more work queues. [any thread]
int worker_submit(void (*fn)(void *arg), void *arg);
// The same on one of a few threads, for work that is done in well below a millisecond and waits for nobody: not for a guest, not for the network, not
// for a flush of the disk. [any thread]
int reader_submit(void (*fn)(void *arg), void *arg);

// Runs fn(arg) on the loop thread, soon. [any thread]
void loop_submit(struct engine *en, void (*fn)(void *arg), void *arg);

// Counters: what was counted is told, in Prometheus's form, and however many microVMs there are the text stays bounded and the sums right.
#include "stasisd/metrics.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void has(const char *text, const char *line) {
	if (text == NULL || strstr(text, line) == NULL)
		fail_msg("\"%s\" is missing in:\n%.3000s", line, text == NULL ? "" : text);
}

// The sum of all samples of a name whose line has the part.
static unsigned long long sum(const char *text, const char *name, const char *part) {
	unsigned long long all = 0;
	for (const char *line = text; line != NULL && *line != '\0'; line = strchr(line, '\n'), line = line == NULL ? NULL : line + 1) {
		const char *end = strchrnul(line, '\n'), *value = memrchr(line, ' ', (size_t)(end - line));
		if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == '{' && value != NULL &&
		    memmem(line, (size_t)(end - line), part, strlen(part)) != NULL)
			all += strtoull(value + 1, NULL, 10);
	}
	return all;
}

static void tells_what_was_counted(void **state) {
	size_t size;
	metrics_request("microvm-a", 200, 10, 1000, 3, 0);
	metrics_request("microvm-a", 204, 0, 1, 700, 300);
	metrics_request("microvm-a", 499, 1, 1, 40000, 0);
	metrics_request("", 403, 0, 30, 0, 0);
	metrics_request("microvm-b", 101, 5, 6, 1, 0);
	metrics_request("microvm-b", 0, 0, 0, 1, 0);
	metrics_stage("resume", "vmm.restore", 7000);
	metrics_stage("resume", "resume", 20001);
	metrics_stage("resume", "vmm.restore", 9000);
	char *text = metrics_text(&size);
	assert_true(text != NULL && strlen(text) == size);
	has(text, "# TYPE stasis_edge_requests_total counter\nstasis_edge_requests_total{class=\"1xx\"} 1\n");
	has(text, "stasis_edge_requests_total{class=\"4xx\"} 2\n");
	has(text, "stasis_edge_requests_total{class=\"5xx\"} 1\n");
	has(text, "stasis_edge_sent_bytes_total{} 1038\n");
	has(text, "stasis_microvm_requests_total{microvm=\"microvm-a\",class=\"2xx\"} 2\n");
	has(text, "stasis_microvm_received_bytes_total{microvm=\"microvm-a\"} 11\n");
	has(text, "stasis_microvm_request_duration_seconds_bucket{microvm=\"microvm-a\",le=\"0.002\"} 0\n");
	has(text, "stasis_microvm_request_duration_seconds_bucket{microvm=\"microvm-a\",le=\"0.005\"} 1\n");
	has(text, "stasis_microvm_request_duration_seconds_bucket{microvm=\"microvm-a\",le=\"1\"} 2\n");
	has(text, "stasis_microvm_request_duration_seconds_bucket{microvm=\"microvm-a\",le=\"+Inf\"} 3\n");
	has(text, "stasis_microvm_request_duration_seconds_sum{microvm=\"microvm-a\"} 40.703000\n");
	has(text, "stasis_edge_held_seconds_count{} 1\n");
	has(text, "stasis_stage_duration_seconds_count{operation=\"resume\",stage=\"vmm.restore\"} 2\n");
	has(text, "stasis_stage_duration_seconds_sum{operation=\"resume\",stage=\"resume\"} 0.020001\n");
	free(text);
}

static void stays_bounded(void **state) {
	size_t size;
	char id[48];
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 5000; i++) {
			snprintf(id, sizeof(id), "microvm-%d", i);
			metrics_request(id, 200, 1, 2, 1, 0);
		}
	}
	for (int i = 0; i < 500; i++) {
		static char names[500][16];
		snprintf(names[i], sizeof(names[i]), "stage-%d", i);
		metrics_stage("run", names[i], 1);
	}
	char *text = metrics_text(&size);
	assert_true(text != NULL && size < 1 << 20);
	unsigned long long all = sum(text, "stasis_edge_requests_total", "2xx"), each = sum(text, "stasis_microvm_requests_total", "2xx");
	assert_int_equal(all, 10002);
	assert_int_equal(each, all);
	assert_int_equal(sum(text, "stasis_microvm_sent_bytes_total", ""), 20000 + 1002 + 6);
	free(text);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tells_what_was_counted),
		cmocka_unit_test(stays_bounded),
	};
	return cmocka_run_group_tests_name("metrics", tests, NULL, NULL);
}

// The few things that the agent does with cgroups (v2) itself; crun does the rest.
#pragma once

// Kills every process of a cgroup ("/app") at once; nothing when there is no such cgroup.
void kill_cgroup(const char *mounted_at, const char *cgroup);

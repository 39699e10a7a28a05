//! How much memory this process and its engines may have: the least of what the lease, the control group and the
//! machine say.

use std::path::{Path, PathBuf};

/// Bytes; zero where nothing can be read, so that nothing is loaded on a guess.
pub fn bytes() -> u64 {
    bytes_of(Path::new("/"))
}

/// `root` is `/`, but for tests.
fn bytes_of(root: &Path) -> u64 {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let machine = read(root.join("proc/meminfo")).and_then(|text| kib_after(&text, "MemTotal:"));
    let lease = read(root.join("proc/self/limits")).and_then(|text| lease_bytes(&text));
    let group = read(root.join("proc/self/cgroup")).and_then(|text| group_bytes(&root.join("sys/fs/cgroup"), &text));
    [machine, lease, group].into_iter().flatten().min().unwrap_or(0)
}

fn kib_after(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1_024)
}

/// What the provider's sandbox lets a process have of data: the lease's memory. `None`: no limit.
fn lease_bytes(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max data size"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The tightest limit on the way from this process's control group to the root. Version 2; of version 1 the group of
/// memory alone, as containers see it.
fn group_bytes(mount: &Path, groups: &str) -> Option<u64> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let own = mount.join(own.trim_start_matches('/'));
    let on_the_way = own.ancestors().take_while(|dir| dir.starts_with(mount)).map(|dir| dir.join("memory.max"));
    on_the_way.chain([mount.join("memory/memory.limit_in_bytes")]).filter_map(read).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_of_machine_lease_and_group_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(bytes_of(dir.path()), 0, "nothing is known");
        write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:        1 kB\n");
        assert_eq!(bytes_of(dir.path()), 16_384_000);
        let limits = |data| format!("Limit  Soft  Hard  Units\nMax data size             {data}   unlimited   bytes\n");
        write("proc/self/limits", &limits("unlimited"));
        assert_eq!(bytes_of(dir.path()), 16_384_000);
        write("proc/self/limits", &limits("8000000"));
        assert_eq!(bytes_of(dir.path()), 8_000_000);
        write("proc/self/cgroup", "0::/tenants/one\n");
        write("sys/fs/cgroup/tenants/one/memory.max", "max\n");
        assert_eq!(bytes_of(dir.path()), 8_000_000);
        write("sys/fs/cgroup/tenants/memory.max", "7000000\n");
        assert_eq!(bytes_of(dir.path()), 7_000_000, "a limit above its own group");
        write("sys/fs/cgroup/tenants/one/memory.max", "6000000\n");
        assert_eq!(bytes_of(dir.path()), 6_000_000);
        write("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n");
        assert_eq!(bytes_of(dir.path()), 5_000_000);
    }

    #[test]
    fn this_machine_says_something() {
        assert!(bytes() > 1 << 20);
    }
}

//! Becoming another user, once the sockets and devices that need privileges are open.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::lchown;
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getresgid, getresuid, initgroups, setgroups, setresgid, setresuid,
};

/// Whom to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user, unless only a group was named.
    user: Option<TargetUser>,
    gid: Gid,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TargetUser {
    uid: Uid,
    /// The name by which the user's groups are found; `None` for a bare number.
    name: Option<CString>,
}

impl Identity {
    /// Finds `user` and `group`, each a name or a number. Without a group the user's primary group
    /// counts. Returns `None` when neither is given.
    ///
    /// Errors: a message that names what is unknown.
    pub fn lookup(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, String> {
        let gid = group.map(find_group).transpose()?;
        let Some(user) = user else {
            return Ok(gid.map(|gid| Self { user: None, gid }));
        };
        let (target, primary) = find_user(user)?;
        let gid = gid
            .or(primary)
            .ok_or_else(|| format!("user {user} is not in the user database: name a group too"))?;
        Ok(Some(Self { user: Some(target), gid }))
    }

    /// Becomes this identity for good, in all threads: supplementary groups, group, user, and no
    /// capability is kept. Unless the target is root, it is then proven that root is out of reach.
    /// Does nothing when the process is this user and group already and is not root.
    ///
    /// Errors: a message with the step that failed. The process must end then: it may hold a part
    /// of its privileges.
    pub fn drop_to(&self) -> Result<(), String> {
        let uids = getresuid().map_err(|errno| format!("cannot read the user ids: {errno}"))?;
        let gids = getresgid().map_err(|errno| format!("cannot read the group ids: {errno}"))?;
        if !uids.effective.is_root() {
            let same_user = self.user.as_ref().is_none_or(|user| {
                [uids.real, uids.effective, uids.saved].iter().all(|uid| *uid == user.uid)
            });
            let same_group =
                [gids.real, gids.effective, gids.saved].iter().all(|gid| *gid == self.gid);
            if same_user && same_group {
                return Ok(());
            }
            return Err(format!(
                "cannot become {}: running as user {} group {}, and only root may change that",
                self.describe(),
                uids.effective,
                gids.effective
            ));
        }

        let failed = |step: &str, errno| {
            format!("cannot become {}: {step}: {}", self.describe(), io::Error::from(errno))
        };
        // Groups first: without root's user id neither call below would be allowed any more.
        match self.user.as_ref().and_then(|user| user.name.as_ref()) {
            Some(name) => initgroups(name, self.gid).map_err(|e| failed("initgroups", e))?,
            None => setgroups(&[self.gid]).map_err(|e| failed("setgroups", e))?,
        }
        setresgid(self.gid, self.gid, self.gid).map_err(|e| failed("setresgid", e))?;
        let Some(user) = &self.user else {
            return Ok(());
        };
        // All three ids: a saved id of root would let the process return. Leaving root this way
        // also clears the permitted, effective and ambient capabilities (capabilities(7)).
        setresuid(user.uid, user.uid, user.uid).map_err(|e| failed("setresuid", e))?;
        if user.uid.is_root() {
            return Ok(());
        }
        self.prove_that_root_is_gone()
    }

    /// Gives `path` to this identity, so that the files made as root (pid file, log) can be
    /// removed or opened again later. A symbolic link is changed itself, not followed: whoever
    /// may write the directory must not get somebody else's file.
    ///
    /// Errors: a message that names the path.
    pub fn chown_path(&self, path: &Path) -> Result<(), String> {
        let uid = self.user.as_ref().map(|user| user.uid.as_raw());
        lchown(path, uid, Some(self.gid.as_raw())).map_err(|error| {
            format!("cannot give {} to {}: {error}", path.display(), self.describe())
        })
    }

    fn prove_that_root_is_gone(&self) -> Result<(), String> {
        let kept = |what: &str| Err(format!("became {}, but {what}", self.describe()));
        if setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok() {
            return kept("can become root again");
        }
        if !self.gid_is_root() && setresgid(ROOT_GROUP, ROOT_GROUP, ROOT_GROUP).is_ok() {
            return kept("can become group root again");
        }
        // The `no-setuid-fixup` secure bit keeps capabilities across setresuid. Without /proc the
        // two attempts above are the proof.
        if let Ok(status) = fs::read_to_string("/proc/thread-self/status") {
            if let Some(line) = held_capabilities(&status) {
                return kept(&format!("holds capabilities: {line}"));
            }
        }
        Ok(())
    }

    fn gid_is_root(&self) -> bool {
        self.gid == ROOT_GROUP
    }

    fn describe(&self) -> String {
        match &self.user {
            Some(TargetUser { uid, name: Some(name) }) => {
                format!("user {} ({uid}) group {}", name.to_string_lossy(), self.gid)
            }
            Some(TargetUser { uid, name: None }) => format!("user {uid} group {}", self.gid),
            None => format!("group {}", self.gid),
        }
    }
}

const ROOT_GROUP: Gid = Gid::from_raw(0);

fn find_user(text: &str) -> Result<(TargetUser, Option<Gid>), String> {
    let failed = |errno| format!("cannot look up user {text}: {}", io::Error::from(errno));
    // Names first, as chown(1) does: a name may consist of digits.
    let mut entry = found(User::from_name(text)).map_err(failed)?;
    let number = parse_id(text).map(Uid::from_raw);
    if let (None, Some(uid)) = (&entry, number) {
        entry = found(User::from_uid(uid)).map_err(failed)?;
    }
    match (entry, number) {
        (Some(user), _) => {
            let name = CString::new(user.name).map_err(|_| format!("unknown user: {text}"))?;
            Ok((TargetUser { uid: user.uid, name: Some(name) }, Some(user.gid)))
        }
        (None, Some(uid)) => Ok((TargetUser { uid, name: None }, None)),
        (None, None) => Err(format!("unknown user: {text}")),
    }
}

fn find_group(text: &str) -> Result<Gid, String> {
    let entry = found(Group::from_name(text))
        .map_err(|errno| format!("cannot look up group {text}: {}", io::Error::from(errno)))?;
    entry
        .map(|group| group.gid)
        .or_else(|| parse_id(text).map(Gid::from_raw))
        .ok_or_else(|| format!("unknown group: {text}"))
}

/// getpwnam(3) lists these errors as ways to say "no such entry"; a container without
/// `/etc/passwd` is one.
fn found<T>(entry: nix::Result<Option<T>>) -> nix::Result<Option<T>> {
    match entry {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        other => other,
    }
}

/// A user or group number. 2^32 - 1 is none: to setresuid it means "leave as it is".
fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// The first line of a `/proc/.../status` that shows a permitted, effective or ambient capability.
fn held_capabilities(status: &str) -> Option<&str> {
    status.lines().find(|line| {
        ["CapPrm:", "CapEff:", "CapAmb:"]
            .iter()
            .filter_map(|key| line.strip_prefix(key))
            .any(|mask| mask.trim().bytes().any(|digit| digit != b'0'))
    })
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use nix::unistd::{getegid, geteuid, getgroups};

    use super::*;

    fn lookup(user: Option<&str>, group: Option<&str>) -> Result<Option<Identity>, String> {
        Identity::lookup(user, group)
    }

    /// Runs `test` again as a process of its own, since a drop cannot be undone.
    fn assert_child_passes(test: &str) {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "--nocapture", &format!("runtime::privileges::tests::{test}")])
            .env("UDPFERRY_TEST_CHILD", "1")
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).contains("dropped");
        assert!(said, "the child did not get to its end: {output:?}");
    }

    fn is_child() -> bool {
        env::var_os("UDPFERRY_TEST_CHILD").is_some()
    }

    #[test]
    fn finds_names_and_numbers() {
        assert_eq!(lookup(None, None), Ok(None));
        let root = lookup(Some("root"), None).unwrap().unwrap();
        assert_eq!(lookup(Some("0"), Some("0")).unwrap().unwrap(), root);
        assert_eq!(root.describe(), "user root (0) group 0");
        let group = lookup(None, Some("12345")).unwrap().unwrap();
        assert_eq!(group.describe(), "group 12345");
        let number = lookup(Some("3999999999"), Some("7")).unwrap().unwrap();
        assert_eq!(number.describe(), "user 3999999999 group 7");
        let user = User::from_name("nobody").unwrap().unwrap();
        let nobody = lookup(Some("nobody"), None).unwrap().unwrap();
        assert_eq!(nobody.gid, user.gid);
    }

    #[test]
    fn names_what_is_unknown() {
        let of = |user, group| lookup(user, group).unwrap_err();
        assert_eq!(of(Some("no-such-user"), None), "unknown user: no-such-user");
        assert_eq!(of(Some("root"), Some("no-such-group")), "unknown group: no-such-group");
        assert_eq!(of(Some(""), None), "unknown user: ");
        assert_eq!(of(Some("4294967295"), None), "unknown user: 4294967295");
        assert_eq!(of(Some("+5"), Some("0")), "unknown user: +5");
        assert_eq!(of(Some("a\0b"), None), "unknown user: a\0b");
        assert!(of(Some("3999999999"), None).contains("name a group too"));
    }

    #[test]
    fn reads_capability_masks() {
        let none = "Name:\tx\nCapInh:\t00000000000000ff\nCapPrm:\t0000000000000000\n\
                    CapEff:\t0000000000000000\nCapBnd:\t000001ffffffffff\nCapAmb:\t0000\n";
        assert_eq!(held_capabilities(none), None);
        let bind = none.replace("CapEff:\t0000000000000000", "CapEff:\t0000000000000400");
        assert_eq!(held_capabilities(&bind), Some("CapEff:\t0000000000000400"));
    }

    #[test]
    fn a_dropped_root_stays_dropped() {
        let nobody = lookup(Some("nobody"), None).unwrap().unwrap();
        let shadow = || fs::File::open("/etc/shadow").map_err(|error| error.kind());
        if is_child() {
            assert!(shadow().is_ok(), "root reads the file before the drop");
            let (go, went) = std::sync::mpsc::channel();
            // A thread that is older than the drop loses its privileges too.
            let elsewhere = std::thread::scope(|scope| {
                let thread = scope.spawn(move || {
                    went.recv().unwrap();
                    shadow()
                });
                nobody.drop_to().unwrap();
                go.send(()).unwrap();
                thread.join().unwrap()
            });
            assert_eq!(elsewhere.unwrap_err(), io::ErrorKind::PermissionDenied);
            assert_eq!(shadow().unwrap_err(), io::ErrorKind::PermissionDenied);
            assert!(setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_err());
            assert!(!getgroups().unwrap().contains(&ROOT_GROUP));
            // A second time it is that user already.
            nobody.drop_to().unwrap();
            let root = lookup(Some("root"), None).unwrap().unwrap();
            assert!(root.drop_to().unwrap_err().contains("only root may change that"));
            eprintln!("dropped");
            return;
        }
        if geteuid().is_root() {
            assert_child_passes("a_dropped_root_stays_dropped");
        } else {
            // Not `nobody`, who may be the one running this.
            assert_only_root_may(&lookup(Some("root"), None).unwrap().unwrap());
        }
    }

    #[test]
    fn a_bare_number_and_a_group_alone() {
        let number = lookup(Some("3999999"), Some("3999998")).unwrap().unwrap();
        let group = lookup(None, Some("3999997")).unwrap().unwrap();
        if is_child() {
            group.drop_to().unwrap();
            assert!(geteuid().is_root());
            assert_eq!(getegid().as_raw(), 3_999_997);
            assert_eq!(getgroups().unwrap(), [Gid::from_raw(3_999_997)]);
            number.drop_to().unwrap();
            assert_eq!((geteuid().as_raw(), getegid().as_raw()), (3_999_999, 3_999_998));
            assert_eq!(getgroups().unwrap(), [Gid::from_raw(3_999_998)]);
            eprintln!("dropped");
            return;
        }
        if geteuid().is_root() {
            assert_child_passes("a_bare_number_and_a_group_alone");
        } else {
            assert_only_root_may(&number);
        }
    }

    fn assert_only_root_may(identity: &Identity) {
        let error = identity.drop_to().unwrap_err();
        let own = format!("running as user {} group {}", geteuid(), getegid());
        assert!(error.contains(&own) && error.contains("only root"), "{error}");
    }

    #[test]
    fn becoming_oneself_is_allowed_to_anybody() {
        let (uid, gid) = (geteuid().to_string(), getegid().to_string());
        let own = lookup(Some(&uid), Some(&gid)).unwrap().unwrap();
        // Root would replace its supplementary groups, which other tests may need.
        if !geteuid().is_root() || is_child() {
            own.drop_to().unwrap();
            eprintln!("dropped");
        } else {
            assert_child_passes("becoming_oneself_is_allowed_to_anybody");
        }
    }

    #[test]
    fn gives_files_away() {
        use std::os::unix::fs::MetadataExt as _;

        let path = env::temp_dir().join(format!("udpferry-chown-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        let number = lookup(Some("3999999"), Some("3999998")).unwrap().unwrap();
        let given = number.chown_path(&path);
        let metadata = fs::metadata(&path).unwrap();
        fs::remove_file(&path).unwrap();
        if geteuid().is_root() {
            given.unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (3_999_999, 3_999_998));
        } else {
            assert!(given.unwrap_err().contains(path.to_str().unwrap()));
        }
        assert!(number.chown_path(&path).unwrap_err().contains(path.to_str().unwrap()));
    }
}

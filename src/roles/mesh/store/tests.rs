use super::*;
use crate::roles::mesh::message::fields::tests::any_tunnel;
use crate::state::seeded::Seeded;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn state(seed: u64) -> State {
    let text = format!(
        r#"{{"version": 1, "commandTime": {seed}, "tunnel": [
            {{"name": "udp2", "tunnelIP": "10.0.1.1", "remoteServer": "192.0.2.{}"}}]}}"#,
        seed % 250 + 1
    );
    read(text.as_bytes()).unwrap()
}

/// A file system that may lose power: what has not been synced is there in part or not at all, as
/// chance falls; the order of what has not been synced is not kept.
struct FailingDisk {
    chance: Seeded,
    /// Calls until the power fails.
    left: u32,
    /// Contents by number, as they are read now, and how many of their bytes are safe.
    files: Vec<(Vec<u8>, usize)>,
    names: BTreeMap<PathBuf, usize>,
    safe_names: BTreeMap<PathBuf, usize>,
}

impl FailingDisk {
    fn call(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }

    fn number(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// What is there once the power is back.
    fn restarted(mut self) -> (BTreeMap<PathBuf, Vec<u8>>, Seeded) {
        // Any change of names may have come through, or not.
        let mut names = self.safe_names.clone();
        for (name, number) in &self.names {
            if self.chance.next_u64() % 2 == 0 {
                names.insert(name.clone(), *number);
            }
        }
        for name in self.safe_names.keys() {
            if !self.names.contains_key(name) && self.chance.next_u64() % 2 == 0 {
                names.remove(name);
            }
        }
        let mut found = BTreeMap::new();
        for (name, number) in names {
            let (bytes, safe) = &self.files[number];
            let unsafe_len = u32::try_from(bytes.len() - safe).unwrap();
            let kept = safe + self.chance.below(unsafe_len + 1) as usize;
            let mut bytes = bytes[..kept].to_vec();
            if self.chance.next_u64() % 2 == 0 {
                // The length came through, and the blocks did not.
                bytes[*safe..].fill(0);
            }
            found.insert(name, bytes);
        }
        (found, self.chance)
    }
}

impl Disk for FailingDisk {
    fn create(&mut self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.files.push((Vec::new(), 0));
        self.names.insert(path.to_owned(), self.files.len() - 1);
        Ok(())
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let number = self.number(path)?;
        // In pieces, between which it may end.
        for piece in bytes.chunks(16) {
            self.call()?;
            self.files[number].0.extend_from_slice(piece);
        }
        Ok(())
    }

    fn sync_file(&mut self, path: &Path) -> io::Result<()> {
        self.call()?;
        let number = self.number(path)?;
        let (bytes, safe) = &mut self.files[number];
        *safe = bytes.len();
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        let number = self.number(from)?;
        self.names.remove(from);
        self.names.insert(to.to_owned(), number);
        Ok(())
    }

    fn sync_directory(&mut self, _: &Path) -> io::Result<()> {
        self.call()?;
        self.safe_names = self.names.clone();
        Ok(())
    }
}

/// A thousand power failures at random points of a life of saves: what is read afterwards is the
/// last state that was saved for sure, or the one that was being saved.
#[test]
fn the_state_is_whole_wherever_the_power_fails() {
    let path = Path::new("/var/lib/udpferry/mesh.json");
    let mut chance = Seeded::new(7);
    let mut files: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
    let mut current = None;
    let (mut kept, mut advanced) = (0, 0);
    for failure in 0..1000_u64 {
        let mut disk = FailingDisk {
            left: chance.below(60),
            chance,
            files: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
        };
        for (name, bytes) in &files {
            disk.names.insert(name.clone(), disk.files.len());
            disk.files.push((bytes.clone(), bytes.len()));
        }
        disk.safe_names = disk.names.clone();
        let mut saving;
        let mut serial = failure * 1000;
        loop {
            serial += 1;
            saving = Some(state(serial));
            let text = write(saving.as_ref().unwrap());
            if replace(&mut disk, path, text.as_bytes()).is_err() {
                break;
            }
            current = saving;
        }
        (files, chance) = disk.restarted();
        let found = files.get(path).map(|bytes| {
            read(bytes).unwrap_or_else(|error| panic!("failure {failure}: torn: {error:?}"))
        });
        assert!(found == current || found == saving, "failure {failure}");
        if found == current {
            kept += 1;
        } else {
            advanced += 1;
        }
        current = found;
    }
    // Both have been seen, or the test tests nothing.
    assert!(kept > 100 && advanced > 20, "{kept} kept, {advanced} advanced");
}

/// The same disk, without the sync before the rename: that the test above can fail.
#[test]
fn a_rename_before_the_sync_tears() {
    let path = Path::new("/x");
    let mut torn = 0;
    for seed in 0..200 {
        let mut disk = FailingDisk {
            chance: Seeded::new(seed),
            left: u32::MAX,
            files: Vec::new(),
            names: BTreeMap::new(),
            safe_names: BTreeMap::new(),
        };
        let new = beside(path, ".new");
        disk.create(&new).unwrap();
        disk.append(&new, write(&state(1)).as_bytes()).unwrap();
        disk.rename(&new, path).unwrap();
        let (files, _) = disk.restarted();
        torn += usize::from(files.get(path).is_some_and(|bytes| read(bytes).is_err()));
    }
    assert!(torn > 0);
}

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("udpferry-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_state_is_read_as_it_was_saved() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("store");
    let store = Store::new(scratch.0.join("mesh.json"));
    assert_eq!(store.load().unwrap(), None);
    for serial in 1..4 {
        store.save(&state(serial)).unwrap();
        assert_eq!(store.load().unwrap(), Some(state(serial)));
    }
    assert_eq!(fs::metadata(&store.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
}

#[test]
fn a_corrupt_file_is_set_aside_and_never_overwritten() {
    let scratch = Scratch::new("store-corrupt");
    let store = Store::new(scratch.0.join("mesh.json"));
    let wrong = [
        "",
        "{",
        "{}",
        r#"{"version": 0}"#,
        r#"{"version": 1, "tunnel": []}"#,
        r#"{"version": 1, "commandTime": 1, "tunnel": [{}]}"#,
        "\0\0\0\0",
    ];
    for (number, text) in (1..).zip(wrong) {
        fs::write(&store.path, text).unwrap();
        assert_eq!(store.load().unwrap(), None, "{text}");
        assert!(!store.path.exists());
        let aside = scratch.0.join(format!("mesh.json.corrupt-{number}"));
        assert_eq!(fs::read_to_string(aside).unwrap(), text);
    }
    for number in 1..=SET_ASIDE_MAX {
        fs::write(scratch.0.join(format!("mesh.json.corrupt-{number}")), "kept").unwrap();
    }
    fs::write(&store.path, "{").unwrap();
    assert!(store.load().unwrap_err().to_string().contains("100 such files"));
    assert_eq!(fs::read_to_string(&store.path).unwrap(), "{");
}

#[test]
fn a_later_version_is_left_alone() {
    let scratch = Scratch::new("store-newer");
    let store = Store::new(scratch.0.join("mesh.json"));
    fs::write(&store.path, r#"{"version": 2}"#).unwrap();
    assert!(store.load().unwrap_err().to_string().contains("its version is 2"));
    assert!(store.path.exists());
    let unreadable = Store::new(scratch.0.clone());
    assert!(unreadable.load().unwrap_err().to_string().starts_with("cannot read "));
}

proptest! {
    #[test]
    fn any_tunnels_are_kept(tunnels in proptest::collection::vec(any_tunnel(), 0..4), time: u64) {
        let state = State { tunnels, command_time_ms: time };
        prop_assert_eq!(read(write(&state).as_bytes()), Ok(state));
    }
}

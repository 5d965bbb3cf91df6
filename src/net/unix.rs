//! A daemon's own door: a Unix socket that only some users may open.

use mio::net::UnixListener;
use socket2::{Domain, SockAddr, Socket, Type};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// Connections that may wait for being accepted.
const BACKLOG: i32 = 64;

/// A listening socket; its file goes with it.
#[derive(Debug)]
pub struct UnixDoor {
    listener: UnixListener,
    path: PathBuf,
}

impl UnixDoor {
    /// Listens at `path`, for our own user and, if given, for the group of that number. What a
    /// process that was killed has left there is replaced.
    ///
    /// Errors: `AddrInUse` when somebody listens there, or when it is no socket.
    pub fn open(path: &Path, group: Option<u32>) -> io::Result<UnixDoor> {
        match fs::symlink_metadata(path) {
            Ok(metadata) if metadata.file_type().is_socket() => {
                let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                if probe.connect(&SockAddr::unix(path)?).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
            }
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        // Under another name until it listens: whoever sees the file can connect.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::UNIX, kind, None)?;
        // The file gets the mode that the socket has before it has a file: at no time may others
        // connect, whatever the umask is (unix_bind_bsd() in net/unix/af_unix.c).
        let file = File::from(OwnedFd::from(socket));
        file.set_permissions(Permissions::from_mode(0o600))?;
        let socket = Socket::from(OwnedFd::from(file));
        socket.bind(&SockAddr::unix(&beside)?)?;
        socket.listen(BACKLOG)?;
        if let Some(group) = group {
            chown(&beside, None, Some(group))?;
            fs::set_permissions(&beside, Permissions::from_mode(0o660))?;
        }
        fs::rename(&beside, path)?;
        let listener = UnixListener::from_std(OwnedFd::from(socket).into());
        Ok(UnixDoor { listener, path: path.to_owned() })
    }

    /// For a poll, and for accepting.
    pub fn listener(&mut self) -> &mut UnixListener {
        &mut self.listener
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        // Else the next one removes it.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("udpferry-{name}-{}", std::process::id()))
    }

    #[test]
    fn a_door_is_for_its_owner_and_goes_when_it_is_closed() {
        let path = scratch("door");
        let door = UnixDoor::open(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert_eq!(UnixDoor::open(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn a_group_may_be_let_in() {
        let path = scratch("door-group");
        let own = fs::metadata("/proc/self").unwrap().gid();
        let _door = UnixDoor::open(&path, Some(own)).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, own));
    }

    #[test]
    fn what_a_killed_process_left_is_replaced_and_nothing_else() {
        let path = scratch("door-left");
        // A socket's file outlives its owner.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(UnixDoor::open(&path, None).unwrap());
        fs::write(&path, "somebody's").unwrap();
        assert_eq!(UnixDoor::open(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody's");
        fs::remove_file(&path).unwrap();
    }
}

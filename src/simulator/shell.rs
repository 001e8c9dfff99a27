//! The shell of a simulated host: whatever command a client sends is run by a real POSIX shell (busybox's
//! ash where there is one, as on ESXi, else `/bin/sh`) against stand-in init scripts that act out the
//! host's state. Nothing here looks at what the command means; only the path prefix `/etc/init.d/` is
//! replaced by a scratch folder's, and the other way round in the output.
//!
//! # How ten thousand hosts are run on two cores
//!
//! A run is recorded with its times, and the recording is played to every further client that sends the
//! same command to a host in the same state. This stays honest, since:
//!
//! * the first run is a real one, and is played live to the clients that wait for it;
//! * the key covers all that the answer can depend on: the whole command, and the state of every service.
//!   A command of one byte more is another command and is run;
//! * only *nonces* are not part of the key: runs of at least 16 hexadecimal or base32 characters that hold
//!   letters and two digits or more, such as the marker that a client makes up for each session. They count by
//!   their place and length, and the client's own are put into its answer;
//! * times are part of the recording: what took two seconds takes two seconds. Pauses below 100 ms are
//!   taken as the machine's own and not repeated.
//!
//! What would differ from run to run (the clock, process ids, random numbers) is that of the first run.
//! Where this matters, [`ShellSpec::memoise`] switches it off.

mod recording;

use super::scripts::{self, Services};
use bytes::{Bytes, BytesMut};
use recording::{NOISE, Recorder, Recording, normalise};
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use recording::{Answer, Event};

/// Where a client believes the init scripts to be.
const INIT_D: &str = "/etc/init.d/";
/// Recordings kept; when there are more all are forgotten.
const MOST_RECORDINGS: usize = 4_096;

/// Limits of a [`Shell`].
#[derive(Debug, Clone)]
pub struct ShellSpec {
    /// Play recordings to clients that ask the same of hosts in the same state.
    pub memoise: bool,
    /// A run is killed after this time; its clients get no exit status and no end.
    pub run_limit: Duration,
    /// A run is killed when it has printed so many bytes.
    pub output_cap: usize,
    /// Most runs at a time. Most of them sleep.
    pub concurrency: usize,
}

impl Default for ShellSpec {
    fn default() -> Self {
        Self { memoise: true, run_limit: Duration::from_secs(60), output_cap: 16 << 20, concurrency: 8 }
    }
}

/// Runs commands. When it is dropped all that still runs is killed and the scratch folder removed.
#[derive(Debug)]
pub struct Shell {
    program: PathBuf,
    scratch: tempfile::TempDir,
    spec: ShellSpec,
    recordings: Mutex<HashMap<Key, watch::Receiver<Recording>>>,
    folders: Arc<tokio::sync::Mutex<HashMap<Arc<Services>, PathBuf>>>,
    slots: Arc<Semaphore>,
    runs: TaskTracker,
    stop: CancellationToken,
    _kill: DropGuard,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    command: String,
    services: Arc<Services>,
}

impl Shell {
    /// A shell with a scratch folder in the system's folder for temporary files, which must not be
    /// mounted `noexec`.
    pub fn new(spec: ShellSpec) -> io::Result<Self> {
        let scratch = tempfile::Builder::new().prefix("esxi-simulator-").tempdir()?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
        if !scratch.path().to_str().is_some_and(|path| path.chars().all(plain)) {
            let message = format!("{}: a shell would not take this path as it is", scratch.path().display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let stop = CancellationToken::new();
        Ok(Self {
            program: find_shell(),
            scratch,
            recordings: Mutex::default(),
            folders: Arc::default(),
            slots: Arc::new(Semaphore::new(spec.concurrency.max(1))),
            runs: TaskTracker::new(),
            _kill: stop.clone().drop_guard(),
            stop,
            spec,
        })
    }

    /// Runs `command` on a host whose services are in these states, or plays the recording of such a run.
    pub fn run(&self, command: &str, services: &Arc<Services>) -> Answer {
        let (shape, nonces) = normalise(command);
        let recording = if self.spec.memoise {
            let mut all = self.recordings.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() > MOST_RECORDINGS {
                all.clear();
            }
            let key = Key { command: shape, services: services.clone() };
            all.entry(key).or_insert_with(|| self.record(command, &nonces, services)).clone()
        } else {
            self.record(command, &nonces, services)
        };
        Answer::new(recording, nonces)
    }

    /// How many different runs are remembered.
    pub fn recordings(&self) -> usize {
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Kills what still runs and waits until it is gone.
    pub async fn close(&self) {
        self.stop.cancel();
        self.runs.close();
        self.runs.wait().await;
    }

    /// Starts a run in the background.
    fn record(
        &self,
        command: &str,
        nonces: &[String],
        services: &Arc<Services>,
    ) -> watch::Receiver<Recording> {
        let (recorder, recording) = watch::channel(Recording::of(nonces));
        let run = Run {
            program: self.program.clone(),
            scratch: self.scratch.path().to_owned(),
            command: command.to_owned(),
            services: services.clone(),
            folders: self.folders.clone(),
            spec: self.spec.clone(),
        };
        let (slots, stop) = (self.slots.clone(), self.stop.clone());
        self.runs.spawn(async move {
            let work = async {
                let Ok(_slot) = slots.acquire_owned().await else { return };
                run.run(&Recorder { recorder: &recorder, started: Instant::now() }).await;
            };
            // Dropping the run kills its processes.
            let _ = stop.run_until_cancelled(work).await;
            recorder.send_modify(|recording| recording.done = true);
        });
        recording
    }
}

fn find_shell() -> PathBuf {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let busybox = std::env::split_paths(&folders).map(|folder| folder.join("busybox"));
    busybox.into_iter().find(|path| path.is_file()).unwrap_or_else(|| PathBuf::from("/bin/sh"))
}

/// One real run.
struct Run {
    program: PathBuf,
    scratch: PathBuf,
    command: String,
    services: Arc<Services>,
    folders: Arc<tokio::sync::Mutex<HashMap<Arc<Services>, PathBuf>>>,
    spec: ShellSpec,
}

impl Run {
    async fn run(&self, recorder: &Recorder<'_>) {
        let (mut child, folder) = match self.start().await {
            Ok(started) => started,
            Err(error) => {
                recorder.push(Event::Stderr(format!("sh: simulator: {error}\n").into()));
                recorder.push(Event::Exit(126));
                recorder.push(Event::End);
                return;
            }
        };
        let group = ProcessGroup(child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let output = async {
            let pump = |stream, wrap| self.pump(stream, wrap, &folder, recorder);
            tokio::join!(
                async {
                    if let Some(stream) = stdout {
                        pump(Stream::Out(stream), Event::Stdout).await
                    }
                },
                async {
                    if let Some(stream) = stderr {
                        pump(Stream::Err(stream), Event::Stderr).await
                    }
                },
                async {
                    let status = child.wait().await.ok();
                    recorder.push(Event::Exit(status.and_then(exit_code).unwrap_or(255)));
                }
            );
        };
        let capped = async {
            let mut watch = recorder.recorder.subscribe();
            let _ = watch.wait_for(|recording| recording.bytes > self.spec.output_cap).await;
        };
        tokio::select! {
            () = output => recorder.push(Event::End),
            () = capped => {}
            () = tokio::time::sleep(self.spec.run_limit) => {}
        }
        drop(group);
    }

    async fn start(&self) -> io::Result<(Child, PathBuf)> {
        let folder = self.folder().await?;
        let command = self.command.replace(INIT_D, &format!("{}/", folder.display()));
        let child = self.shell(&command).process_group(0).spawn()?;
        Ok((child, folder))
    }

    /// The scripts for these states, written when they are first asked for. They are executed as another
    /// process has copied them: whatever this one starts while it writes a script, in whichever thread,
    /// inherits the open file, and until it has let go of it nobody could execute the script (ETXTBSY).
    async fn folder(&self) -> io::Result<PathBuf> {
        let mut folders = self.folders.lock().await;
        if let Some(folder) = folders.get(&self.services) {
            return Ok(folder.clone());
        }
        let folder = self.scratch.join(folders.len().to_string());
        let draft = folder.with_extension("draft");
        scripts::write(&draft, &self.services)?;
        let copy = self.shell(r#"exec cp -Rp "$0" "$1""#).arg(&draft).arg(&folder).output().await?;
        if !copy.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&copy.stderr).trim().to_owned()));
        }
        std::fs::remove_dir_all(&draft)?;
        folders.insert(self.services.clone(), folder.clone());
        Ok(folder)
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new(&self.program);
        shell
            .arg0("sh")
            .arg("-c")
            .arg(command)
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        shell
    }

    /// Records a stream line by line, so that no nonce is torn apart.
    async fn pump(
        &self,
        mut stream: Stream,
        wrap: fn(Bytes) -> Event,
        folder: &Path,
        recorder: &Recorder<'_>,
    ) {
        let folder = format!("{}/", folder.display());
        let mut buffer = BytesMut::with_capacity(8 << 10);
        loop {
            let waiting = !buffer.is_empty();
            buffer.reserve(8 << 10);
            let read = tokio::time::timeout(NOISE, stream.read(&mut buffer));
            let read = if waiting { read.await.ok() } else { Some(read.into_inner().await) };
            let ended = matches!(read, Some(Ok(0) | Err(_)));
            let whole = buffer.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            let ready = if read.is_none() || ended || buffer.len() > 32 << 10 { buffer.len() } else { whole };
            if ready > 0 {
                recorder.push(wrap(put_back(&buffer.split_to(ready), &folder)));
            }
            if ended || recorder.bytes() > self.spec.output_cap {
                return;
            }
        }
    }
}

/// The scratch folder's path in the output becomes that of the init scripts again.
fn put_back(output: &[u8], folder: &str) -> Bytes {
    match std::str::from_utf8(output) {
        Ok(text) if text.contains(folder) => text.replace(folder, INIT_D).into(),
        _ => Bytes::copy_from_slice(output),
    }
}

enum Stream {
    Out(tokio::process::ChildStdout),
    Err(tokio::process::ChildStderr),
}

impl Stream {
    async fn read(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        async fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> io::Result<usize> {
            stream.read_buf(buffer).await
        }
        match self {
            Self::Out(stream) => read(stream, buffer).await,
            Self::Err(stream) => read(stream, buffer).await,
        }
    }
}

/// The processes of a run. Dropping kills them, also those that the shell left behind.
struct ProcessGroup(Option<rustix::process::Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Nobody left to kill is the usual case.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

fn exit_code(status: std::process::ExitStatus) -> Option<u32> {
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal))?;
    u32::try_from(code).ok()
}

#[cfg(test)]
mod tests {
    use super::super::faults::ServiceState;
    use super::*;

    async fn all(mut answer: Answer) -> (String, Option<u32>) {
        let (mut output, mut exit) = (String::new(), None);
        while let Some(event) = answer.next().await {
            match event {
                Event::Stdout(bytes) | Event::Stderr(bytes) => {
                    output.push_str(&String::from_utf8_lossy(&bytes))
                }
                Event::Exit(code) => exit = Some(code),
                Event::End => break,
            }
        }
        (output, exit)
    }

    fn with(name: &str, state: ServiceState) -> Arc<Services> {
        let mut services = scripts::healthy();
        services.insert(name.into(), state);
        Arc::new(services)
    }

    #[tokio::test]
    async fn a_command_is_run_by_a_shell_against_stand_ins() {
        let shell = Shell::new(ShellSpec::default()).unwrap();
        let services = with("vpxa", ServiceState::Stopped);
        let command = "for s in hostd vpxa gone; do /etc/init.d/$s status; echo \"-- $?\"; done 2>&1; exit 7";
        let (output, exit) = all(shell.run(command, &services)).await;
        assert!(output.contains("hostd is running.\n-- 0\n"), "{output}");
        assert!(output.contains("vpxa is not running\n-- 3\n"), "{output}");
        assert!(output.contains("-- 127"), "{output}");
        assert!(output.contains("/etc/init.d/gone: not found"), "no trace of the scratch folder: {output}");
        assert_eq!(exit, Some(7));
    }

    #[tokio::test]
    async fn a_recording_is_played_with_the_clients_own_marker() {
        let shell = Shell::new(ShellSpec::default()).unwrap();
        let services = Arc::new(scripts::healthy());
        let ask =
            |marker: &str| all(shell.run(&format!("echo {marker} $$; /etc/init.d/hostd status"), &services));
        let (first, _) = ask("00112233445566778899aabbccddeeff").await;
        let (second, _) = ask("ffeeddccbbaa99887766554433221100").await;
        let pid = |output: &str| output.split_whitespace().nth(1).map(str::to_owned);
        assert!(second.starts_with("ffeeddccbbaa99887766554433221100 "), "{second}");
        assert_eq!(pid(&first), pid(&second), "the second answer was not a recording");
        assert_eq!(shell.recordings(), 1);
    }

    #[tokio::test]
    async fn another_state_or_another_byte_is_another_run() {
        let shell = Shell::new(ShellSpec::default()).unwrap();
        let ask = |command, state| all(shell.run(command, &with("hostd", state)));
        let (running, _) = ask("/etc/init.d/hostd status", ServiceState::Running).await;
        let (stopped, _) = ask("/etc/init.d/hostd status", ServiceState::Stopped).await;
        let (other, _) = ask("/etc/init.d/hostd  status; echo", ServiceState::Stopped).await;
        assert_ne!(running, stopped);
        assert_ne!(stopped, other);
        assert_eq!(shell.recordings(), 3);
    }

    #[tokio::test]
    async fn what_takes_its_time_takes_it_again_in_a_recording() {
        let shell = Shell::new(ShellSpec::default()).unwrap();
        let services = with("hostd", ServiceState::Slow(Duration::from_millis(400)));
        for round in ["run", "recording"] {
            let started = Instant::now();
            let (output, _) = all(shell.run("/etc/init.d/hostd status", &services)).await;
            assert!(output.contains("hostd is running."), "{output}");
            assert!(started.elapsed() >= Duration::from_millis(390), "{round}: {:?}", started.elapsed());
        }
    }

    #[tokio::test]
    async fn a_run_without_end_is_killed_and_its_client_gets_no_end() {
        let services = with("hostd", ServiceState::Stubborn);
        // Where this machine stalls, the end may come before the output.
        for limit in [Duration::from_millis(300), Duration::from_secs(3), Duration::from_secs(30)] {
            let shell = Shell::new(ShellSpec { run_limit: limit, ..Default::default() }).unwrap();
            let mut answer = shell.run("echo $$; /etc/init.d/hostd status", &services);
            let Some(event) = answer.next().await else { continue };
            let Event::Stdout(pid) = event else { panic!("{event:?}") };
            assert_eq!(answer.next().await, None);
            shell.close().await;
            let (pid, start) = (String::from_utf8_lossy(&pid), Instant::now());
            while lives(pid.trim()) {
                assert!(start.elapsed() < Duration::from_secs(30), "processes of the run are still there");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return;
        }
        panic!("no output");
    }

    /// Whether any process of the group is more than a zombie: where nobody waits for orphans, they stay.
    fn lives(group: &str) -> bool {
        std::fs::read_dir("/proc").unwrap().flatten().any(|process| {
            let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // Behind the name, which may hold anything: state, parent, group.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            matches!(fields[..], [state, _, of, ..] if state != "Z" && of == group)
        })
    }

    #[tokio::test]
    async fn output_has_a_cap() {
        let shell = Shell::new(ShellSpec { output_cap: 100_000, ..Default::default() }).unwrap();
        let services = with("hostd", ServiceState::Flood(10_000_000));
        let (output, exit) = all(shell.run("/etc/init.d/hostd status", &services)).await;
        assert!((100_000..200_000).contains(&output.len()), "{}", output.len());
        assert_eq!(exit, None);
    }
}

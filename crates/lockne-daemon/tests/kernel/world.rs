//! What a test acts in: a machine with a way to the world and a tunnel, and what is at their far ends.

use std::{
    fs::{self, File},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use lockne_abi::{MarkField, Policy};
use lockne_core::policy::PolicyId;
use lockne_daemon::kernel::Kernel;
use rtnetlink::{Handle, LinkUnspec, LinkVeth};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// The port of the server at the far ends: it sends back each datagram, and takes connections.
pub const PORT: u16 = 7;

/// A device and the addresses behind it.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub name: &'static str,
    pub index: u32,
    pub far4: SocketAddr,
    pub far6: SocketAddr,
}

pub struct World {
    /// Dropped before the pins are removed, as when a daemon has died.
    kernel: Option<Kernel>,
    dir: TempDir,
    pub wan: Device,
    pub tun: Device,
    far: Far,
}

impl World {
    /// Moves the calling thread to a new network namespace and loads the programs there.
    pub fn new() -> Self {
        let mut world = Self::without_kernel();
        world.open();
        world
    }

    pub fn without_kernel() -> Self {
        new_namespace();
        Self::here()
    }

    /// Uses the network namespace of the calling thread, which is empty.
    pub fn here() -> Self {
        let far = Far::new();
        let wan = device("wan", [192, 0, 2, 2], "2001:db8:1::2");
        let tun = device("tun", [198, 51, 100, 2], "2001:db8:2::2");
        for device in [&wan, &tun] {
            connect(device, &far);
        }
        Self {
            kernel: None,
            dir: tempfile::tempdir().unwrap(),
            wan,
            tun,
            far,
        }
    }

    /// Starts a daemon's kernel side; if there was one, it dies first.
    pub fn open(&mut self) {
        self.kernel = None;
        self.kernel = Some(Kernel::open(&self.pins(), MarkField::DEFAULT).unwrap());
    }

    /// As when a daemon dies.
    pub fn close(&mut self) {
        self.kernel = None;
    }

    pub fn pins(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    pub fn kernel(&mut self) -> &mut Kernel {
        self.kernel.as_mut().unwrap()
    }

    /// Makes policy `number` one that goes by the tunnel.
    pub fn tunnel_policy(&mut self, number: u8) -> PolicyId {
        let index = self.tun.index;
        self.policy(number, Policy::tunnel(index))
    }

    pub fn policy(&mut self, number: u8, policy: Policy) -> PolicyId {
        let id = id(number);
        self.kernel().set_policy(id, policy).unwrap();
        id
    }

    /// What arrived at the far end of both devices, since the last call. Nothing is on its way any more.
    pub fn arrived(&self) -> Vec<Vec<u8>> {
        const MARKER: &[u8] = b"marker";
        let markers = [self.wan.far4, self.tun.far4, self.wan.far6, self.tun.far6];
        for far in markers {
            let here: IpAddr = match far {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((here, 0)).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            socket.send_to(MARKER, far).unwrap();
            let mut buffer = [0; 16];
            let length = socket
                .recv(&mut buffer)
                .expect("the way to the far end is open");
            assert_eq!(&buffer[..length], MARKER);
        }
        let mut arrived = std::mem::take(&mut *self.far.arrived.lock().unwrap());
        let all = arrived.len();
        arrived.retain(|datagram| datagram != MARKER);
        assert_eq!(all - arrived.len(), markers.len());
        arrived
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.kernel = None;
        let removed = Kernel::remove(&self.pins());
        if !thread::panicking() {
            removed.unwrap();
        }
    }
}

pub fn id(number: u8) -> PolicyId {
    PolicyId(number.try_into().unwrap())
}

/// The mark of policy `number`, as a probe says it.
pub fn mark(number: u8) -> String {
    format!("{:#x}", MarkField::DEFAULT.mark(number))
}

/// Moves the calling thread to a new network namespace, where loopback is up.
pub fn new_namespace() {
    // SAFETY: affects nothing but the network of this thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    // Addresses are to work at once.
    for conf in ["default", "all"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/accept_dad"), "0").unwrap();
    }
    netlink(async |handle| set_up(&handle, "lo").await);
}

/// The number of the calling thread's network namespace.
pub fn namespace_number() -> u64 {
    fs::metadata("/proc/thread-self/ns/net").unwrap().ino()
}

/// Moves the calling thread to a new network namespace that has a number which was another's.
pub fn reuse_namespace_number(number: u64) {
    const PATIENCE: Duration = Duration::from_mins(1);
    // So that each new one is asked for another number; more than that take the room of other tests.
    const HELD: usize = 100;
    let begin = Instant::now();
    let mut held = Vec::new();
    loop {
        new_namespace();
        if namespace_number() == number {
            return;
        }
        held.push(File::open("/proc/thread-self/ns/net").unwrap());
        if held.len() == HELD {
            assert!(begin.elapsed() < PATIENCE, "nobody gets {number}");
            held.clear();
        }
    }
}

/// The machine behind both devices.
struct Far {
    namespace: File,
    arrived: Arc<Mutex<Vec<Vec<u8>>>>,
    commands: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Far {
    fn new() -> Self {
        let (commands, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, is_ready) = mpsc::channel();
        let arrived = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&arrived);
        thread::spawn(move || {
            new_namespace();
            let udp = UdpSocket::bind(("::", PORT)).unwrap();
            let tcp = TcpListener::bind(("::", PORT)).unwrap();
            ready
                .send(File::open("/proc/thread-self/ns/net").unwrap())
                .unwrap();
            let server = udp.try_clone().unwrap();
            let echo = thread::spawn(move || echo(&server, &log));
            for command in inbox {
                command();
            }
            // An empty datagram to itself ends it.
            udp.send_to(&[], ("::1", PORT)).unwrap();
            echo.join().unwrap();
            drop(tcp);
        });
        Self {
            namespace: is_ready.recv().unwrap(),
            arrived,
            commands,
        }
    }

    /// Runs something in its namespace.
    fn run(&self, command: impl FnOnce() + Send + 'static) {
        let (done, is_done) = mpsc::channel();
        let command = move || {
            command();
            done.send(()).unwrap();
        };
        self.commands.send(Box::new(command)).unwrap();
        is_done.recv().unwrap();
    }
}

fn echo(server: &UdpSocket, log: &Mutex<Vec<Vec<u8>>>) {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = server.recv_from(&mut buffer).unwrap();
        if length == 0 {
            return;
        }
        log.lock().unwrap().push(buffer[..length].to_vec());
        // The sender may be gone.
        let _ = server.send_to(&buffer[..length], from);
    }
}

fn device(name: &'static str, far4: [u8; 4], far6: &str) -> Device {
    // Unlike those of any other namespace, because counters go by mark and index alone.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let base = 1000 + std::process::id() % 100_000 * 1000;
    Device {
        name,
        index: base + NEXT.fetch_add(1, Ordering::Relaxed),
        far4: (far4, PORT).into(),
        far6: (far6.parse::<std::net::Ipv6Addr>().unwrap(), PORT).into(),
    }
}

/// Makes the device, and gives its other end to the far machine.
pub fn make(device: &Device, peer: &str) {
    let device = *device;
    netlink(async |handle| {
        let link = LinkVeth::new(device.name, peer).index(device.index).build();
        handle.link().add(link).execute().await.unwrap();
        set_up(&handle, device.name).await;
    });
}

pub fn delete(device: &Device) {
    netlink(async |handle| handle.link().del(device.index).execute().await.unwrap());
}

fn connect(device: &Device, far: &Far) {
    let peer = format!("{}-far", device.name);
    make(device, &peer);
    let namespace = far.namespace.as_raw_fd();
    netlink(async |handle| {
        let link = LinkUnspec::new_with_name(&peer)
            .setns_by_fd(namespace)
            .build();
        handle.link().set(link).execute().await.unwrap();
        for far in [device.far4, device.far6] {
            address(&handle, device.index, near(far.ip())).await;
        }
    });
    let addresses = [device.far4.ip(), device.far6.ip()];
    far.run(move || {
        netlink(async |handle| {
            set_up(&handle, &peer).await;
            for address_of_far in addresses {
                address(&handle, index(&peer), address_of_far).await;
            }
        });
    });
}

/// The address of our end.
fn near(far: IpAddr) -> IpAddr {
    match far {
        IpAddr::V4(far) => Ipv4Addr::from_bits(far.to_bits() - 1).into(),
        IpAddr::V6(far) => std::net::Ipv6Addr::from_bits(far.to_bits() - 1).into(),
    }
}

async fn address(handle: &Handle, index: u32, address: IpAddr) {
    let length = if address.is_ipv4() { 24 } else { 64 };
    handle
        .address()
        .add(index, address, length)
        .execute()
        .await
        .unwrap();
}

async fn set_up(handle: &Handle, name: &str) {
    let link = LinkUnspec::new_with_index(index(name)).up().build();
    handle.link().set(link).execute().await.unwrap();
}

pub fn index(name: &str) -> u32 {
    let socket = UdpSocket::bind(("127.0.0.1", 0));
    let socket = socket.or_else(|_| UdpSocket::bind(("0.0.0.0", 0))).unwrap();
    rustix::net::netdevice::name_to_index(socket, name).unwrap()
}

fn netlink<T>(work: impl AsyncFnOnce(Handle) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    runtime.unwrap().block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        work(handle).await
    })
}

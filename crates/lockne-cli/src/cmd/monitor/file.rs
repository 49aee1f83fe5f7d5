//! Packets in a pcapng file, each with its process in the comment.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use lockne_daemon::observe;
use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::show::Packet;
use crate::{
    failure::{Failure, Result},
    stream::Clock,
};

/// Where the two addresses of an Ethernet header end, and a tag has its place.
const TAG_AT: usize = 12;

/// Nanoseconds, as a power of ten.
const RESOLUTION: u8 = 9;

pub(crate) struct File {
    writer: PcapNgWriter<BufWriter<Box<dyn Write>>>,
    path: PathBuf,
    /// By device and kind of link; a name can come to stand for another device.
    interfaces: BTreeMap<(u32, String, bool), u32>,
    snaplen: u32,
    failed: Option<io::Error>,
}

impl File {
    /// Creates the file; `-` is stdout.
    pub(crate) fn create(path: &Path, snaplen: u32) -> Result<Self> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(format!("cannot write `{}`", path.display())).because(error)
        };
        let target: Box<dyn Write> = if path.as_os_str() == "-" {
            Box::new(io::stdout())
        } else {
            Box::new(fs::File::create(path).map_err(|error| failed(&error))?)
        };
        let writer = PcapNgWriter::new(BufWriter::with_capacity(1 << 16, target))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            writer,
            path: path.to_owned(),
            interfaces: BTreeMap::new(),
            snaplen,
            failed: None,
        })
    }

    /// Writes a packet. Says whether the next one can be written too.
    pub(crate) fn add(&mut self, packet: &Packet<'_>, bytes: &[u8], clock: Clock) -> bool {
        let result = self
            .try_add(packet, bytes, clock)
            .map_err(|error| match error {
                PcapError::IoError(error) => error,
                error => io::Error::other(error),
            });
        self.note(result)
    }

    fn try_add(
        &mut self,
        packet: &Packet<'_>,
        bytes: &[u8],
        clock: Clock,
    ) -> std::result::Result<(), PcapError> {
        let interface_id = self.interface(packet)?;
        let direction = if packet.direction() == "in" { 1 } else { 2 };
        let comment = packet
            .comment()
            .map(|text| EnhancedPacketOption::Comment(text.into()));
        let flags = EnhancedPacketOption::Flags(direction);
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: clock.since_epoch(packet.seen.time),
            original_len: packet.seen.length,
            data: whole(packet.seen, bytes),
            options: comment.into_iter().chain([flags]).collect(),
        })?;
        Ok(())
    }

    fn interface(&mut self, packet: &Packet<'_>) -> std::result::Result<u32, PcapError> {
        let is_ethernet = packet.seen.has(observe::Packet::ETHERNET);
        let key = (packet.seen.ifindex, packet.device.clone(), is_ethernet);
        if let Some(id) = self.interfaces.get(&key) {
            return Ok(*id);
        }
        let link = if is_ethernet {
            DataLink::ETHERNET
        } else {
            DataLink::RAW
        };
        let mut block = InterfaceDescriptionBlock::new(link, self.snaplen);
        block.options = vec![
            InterfaceDescriptionOption::IfName(packet.device.clone().into()),
            InterfaceDescriptionOption::IfTsResol(RESOLUTION),
        ];
        self.writer.write_pcapng_block(block)?;
        let id = u32::try_from(self.interfaces.len()).unwrap_or(u32::MAX);
        self.interfaces.insert(key, id);
        Ok(id)
    }

    pub(crate) fn flush(&mut self) -> bool {
        let result = self.writer.get_mut().flush();
        self.note(result)
    }

    fn note(&mut self, result: io::Result<()>) -> bool {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
        self.failed.is_none()
    }

    /// A reader that has gone away is no failure.
    pub(crate) fn end(mut self) -> Result<()> {
        self.flush();
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("cannot write `{}`", self.path.display())).because(&error))
            }
            _ => Ok(()),
        }
    }
}

/// The packet with its tag where it was on the wire: the kernel keeps it apart.
fn whole<'a>(packet: &observe::Packet, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    if !packet.has(observe::Packet::TAGGED) || bytes.len() < TAG_AT {
        return Cow::Borrowed(bytes);
    }
    let kind: [u8; 2] = if packet.has(observe::Packet::PROVIDER_TAG) {
        [0x88, 0xa8]
    } else {
        [0x81, 0]
    };
    let (addresses, rest) = bytes.split_at(TAG_AT);
    Cow::Owned([addresses, &kind, &packet.vlan.to_be_bytes(), rest].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_is_put_back_where_it_was() {
        let packet = observe::Packet {
            vlan: 0x2005,
            flags: observe::Packet::TAGGED,
            ..observe::Packet::default()
        };
        let bytes: Vec<u8> = (0..16).collect();

        let tagged = whole(&packet, &bytes);

        assert_eq!(&tagged[10..18], [10, 11, 0x81, 0, 0x20, 5, 12, 13]);
        assert_eq!(whole(&observe::Packet::default(), &bytes), &bytes[..]);
    }
}

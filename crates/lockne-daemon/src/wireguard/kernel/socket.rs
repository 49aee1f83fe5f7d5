//! A generic netlink socket to the family `wireguard`.

use std::io;

use netlink_packet_core::{
    Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_generic::{
    GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use netlink_packet_wireguard::{WireguardAttribute, WireguardCmd, WireguardMessage};
use netlink_sys::{SocketAddr, protocols::NETLINK_GENERIC};
use zeroize::Zeroizing;

/// A socket, in the network namespace of the thread that opened it.
pub(super) struct Socket {
    socket: netlink_sys::Socket,
    family: u16,
}

impl Socket {
    /// Connects and asks for the number of the family. Fails with ENOENT where there is no module.
    pub(super) fn open() -> io::Result<Self> {
        let socket = netlink_sys::Socket::new(NETLINK_GENERIC)?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut this = Self { socket, family: 0 };
        let question = GenlMessage::from_payload(GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName("wireguard".to_owned())],
        });
        let answers = this.ask(question, NLM_F_ACK)?;
        let ids = answers.into_iter().flat_map(|answer| answer.payload.nlas);
        let mut ids = ids.filter_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(id),
            _ => None,
        });
        this.family = ids.next().ok_or(io::ErrorKind::NotFound)?;
        Ok(this)
    }

    /// Sets attributes of a device.
    pub(super) fn set(&mut self, attributes: Vec<WireguardAttribute>) -> io::Result<()> {
        self.wireguard(WireguardCmd::SetDevice, attributes, NLM_F_ACK)?;
        Ok(())
    }

    /// Reads a device, in as many parts as the kernel makes of it.
    pub(super) fn get(&mut self, ifindex: u32) -> io::Result<Vec<WireguardMessage>> {
        let attributes = vec![WireguardAttribute::IfIndex(ifindex)];
        self.wireguard(WireguardCmd::GetDevice, attributes, NLM_F_DUMP)
    }

    fn wireguard(
        &mut self,
        cmd: WireguardCmd,
        attributes: Vec<WireguardAttribute>,
        flags: u16,
    ) -> io::Result<Vec<WireguardMessage>> {
        let mut question = GenlMessage::from_payload(WireguardMessage { cmd, attributes });
        question.set_resolved_family_id(self.family);
        let answers = self.ask(question, flags)?;
        Ok(answers.into_iter().map(|answer| answer.payload).collect())
    }

    /// Sends a question and collects the answers, up to the kernel's word that it was all.
    fn ask<T>(&mut self, question: GenlMessage<T>, flags: u16) -> io::Result<Vec<GenlMessage<T>>>
    where
        GenlMessage<T>: NetlinkSerializable + NetlinkDeserializable + Emitable,
    {
        let mut message = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(question),
        );
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        // A private key may be in it.
        let mut buffer = Zeroizing::new(vec![0; message.buffer_len()]);
        message.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;

        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let bytes = Zeroizing::new(bytes);
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message: NetlinkMessage<GenlMessage<T>> =
                    NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
                let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
                let length = length.next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

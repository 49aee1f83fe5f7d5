//! What is wrong with a file is said with its line.

use lockne_core::wgquick::Config;

const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

fn error(text: &str) -> String {
    let text = text.replace("KEY", KEY);
    Config::parse(text).unwrap_err().to_string()
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn error_names_line_key_value_and_reason() {
    let interface = "[Interface]\nPrivateKey = KEY\n";
    let peer = "[Interface]\nPrivateKey = KEY\n[Peer]\nPublicKey = KEY\n";
    for (start, line, message) in [
        (
            interface,
            "ListenPort = x!",
            "line 3: `ListenPort` has `x!`: not a port from 1 to 65535",
        ),
        (
            interface,
            "ListenPort = 70000",
            "line 3: `ListenPort` has `70000`: not a port from 1 to 65535",
        ),
        (
            interface,
            "ListenPort =",
            "line 3: `ListenPort` has no value",
        ),
        (
            interface,
            "FwMark = 0Xff",
            "line 3: `FwMark` has `0Xff`: not `off`, a number or `0x` and hexadecimal digits, of 32 bits",
        ),
        (
            interface,
            "Address = 10.0.0.1/24, 10.0.0.300/24",
            "line 3: `Address` has `10.0.0.300/24`: invalid IPv4 address",
        ),
        (
            interface,
            "DNS = 10.0.0",
            "line 3: `DNS` has `10.0.0`: invalid IPv4 address",
        ),
        (
            interface,
            "MTU = big",
            "line 3: `MTU` has `big`: not a number from 68 to 65535",
        ),
        (
            interface,
            "Table = 1 2",
            "line 3: `Table` has `1 2`: not `auto`, `off` or a routing table",
        ),
        (
            interface,
            "SaveConfig = yes",
            "line 3: `SaveConfig` has `yes`: neither `true` nor `false`",
        ),
        (
            interface,
            "PrivateKey = abc",
            "line 3: `PrivateKey`: a key has 44 characters of base64, this has 3",
        ),
        (
            interface,
            "PublicKey = KEY",
            "line 3: `PublicKey` belongs to [Peer]",
        ),
        (interface, "Jc = 4", "line 3: `Jc` is not a key of wg-quick"),
        (
            interface,
            "nonsense",
            "line 3: neither a section nor `key = value`",
        ),
        (
            interface,
            "; a comment of other formats",
            "line 3: neither a section nor `key = value`",
        ),
        (
            interface,
            "[Interfaces]",
            "line 3: `[Interfaces]` is neither `[Interface]` nor `[Peer]`",
        ),
        (interface, "[Peer]", "line 3: `[Peer]` has no `PublicKey`"),
        (
            peer,
            "AllowedIPs = 10.0.0.300/8",
            "line 5: `AllowedIPs` has `10.0.0.300/8`: invalid IPv4 address",
        ),
        (
            peer,
            "AllowedIPs = 10.0.0.0/8,",
            "line 5: `AllowedIPs` has ``: not an IP address",
        ),
        (
            peer,
            "AllowedIPs = ::/129",
            "line 5: `AllowedIPs` has `::/129`: invalid prefix length",
        ),
        (
            peer,
            "Endpoint = vpn.example.com",
            "line 5: `Endpoint` has `vpn.example.com`: no port: write `host:port`, or `[address]:port` for IPv6",
        ),
        (
            peer,
            "PersistentKeepalive = 25s",
            "line 5: `PersistentKeepalive` has `25s`: not `off` or a number of seconds from 0 to 65535",
        ),
        (
            peer,
            "Address = 10.0.0.1",
            "line 5: `Address` belongs to [Interface]",
        ),
        (
            peer,
            "[Peer]\nPublicKey = KEY",
            "line 5: `[Peer]` has the same `PublicKey` as the one on line 3",
        ),
        ("", "", "no `[Interface]` section"),
        ("", "MTU = 5", "line 1: `MTU` stands before any section"),
        (
            "",
            "\n[Interface]",
            "line 2: `[Interface]` has no `PrivateKey`",
        ),
    ] {
        assert_eq!(error(&format!("{start}{line}")), message);
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_with_their_line() {
    let error = Config::parse(b"[Interface]\n# caf\xe9\n").unwrap_err();

    assert_eq!(error.to_string(), "line 2: not UTF-8 text");
}

#[test]
fn key_in_the_wrong_place_is_not_shown() {
    for text in [
        "[Interface]\nEndpoint = KEY",
        "[Interface]\nListenPort = KEY",
        "[Interface]\nAddress = KEY",
        "[Interface]\nKEY",
        "[Interface]\nKEY = PrivateKey",
        "[Interface]\nPrivateKey = KEY KEY",
        "[KEY]",
        "KEY",
    ] {
        let error = error(text);

        assert!(!error.contains(&KEY[..43]), "{error}");
    }
}

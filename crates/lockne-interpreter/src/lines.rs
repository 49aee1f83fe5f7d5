//! Which line of source each instruction is from, as the object's BTF says it.
//!
//! The same table is what the kernel shows in the verifier's log and `bpftool prog dump xlated linum`.

use aya_obj::generated::bpf_line_info;

/// A line of a source file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Line {
    /// The file, as the compiler was told to name it.
    pub file: String,
    /// The number, from 1 on.
    pub number: u32,
}

/// The lines that have code, each with its first instruction, in the order of instructions.
pub(crate) fn of(records: &[bpf_line_info], btf: &[u8]) -> Vec<(usize, Option<Line>)> {
    let mut lines: Vec<_> = records
        .iter()
        .map(|record| {
            // Documentation/bpf/btf.rst: the number is in the upper 22 bits, the column below.
            let number = record.line_col >> 10;
            let line = text(btf, record.file_name_off)
                // Code that the compiler made of no line or of several.
                .filter(|_| number != 0)
                .map(|file| Line { file, number });
            (record.insn_off as usize, line)
        })
        .collect();
    lines.sort_by_key(|(instruction, _)| *instruction);
    lines
}

/// The string at `offset` of the strings of raw BTF.
fn text(btf: &[u8], offset: u32) -> Option<String> {
    let word = |at: usize| -> Option<usize> {
        let bytes = btf.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    };
    // struct btf_header: hdr_len, type_off, type_len, str_off, str_len from byte 4 on.
    let strings = word(4)? + word(16)?;
    let bytes = btf.get(strings + offset as usize..)?;
    let end = bytes.iter().position(|byte| *byte == 0)?;
    String::from_utf8(bytes[..end].to_vec()).ok()
}

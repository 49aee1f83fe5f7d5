//! What demo 02 reports.

crate::shared! {
    /// A process that became another program.
    struct Exec {
        /// Its number, as the first pid namespace has it.
        pid: u32,
        /// The user it runs as.
        uid: u32,
        /// Its new name, ended by a zero.
        name: [u8; 16],
        /// The path as it was given to `execve`, ended by a zero, and cut if longer.
        filename: [u8; 256],
    }
}

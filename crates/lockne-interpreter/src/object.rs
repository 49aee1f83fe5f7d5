//! An object file: programs, maps, and which line each instruction is from.

use std::collections::{HashMap, HashSet};

use crate::{
    Error, lines,
    program::Program,
    table::{Kind, Table},
    world::World,
};

/// An object file whose programs can be run.
#[derive(Debug)]
pub struct Object {
    object: aya_obj::Object,
    maps: Vec<(String, Table)>,
}

impl Object {
    /// Reads an object file and links its programs, as the loader does.
    ///
    /// # Errors
    ///
    /// If it is not an object file, or has a map that is not imitated.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        Self::parse_with(bytes, &[], &[])
    }

    /// As [`parse`](Self::parse), with the globals and numbers of map entries that the loader sets.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse); and if the object does not have one of `globals`.
    pub fn parse_with(
        bytes: &[u8],
        globals: &[(&str, &[u8])],
        entries: &[(&str, u32)],
    ) -> Result<Self, Error> {
        let mut object = aya_obj::Object::parse(bytes).map_err(broken)?;
        let globals: HashMap<_, _> = globals
            .iter()
            .map(|(name, value)| (*name, (*value, true)))
            .collect();
        object.patch_map_data(globals).map_err(broken)?;
        for (name, entries) in entries {
            let map = object.maps.get_mut(*name).ok_or_else(|| Error::Object {
                reason: format!("no map `{name}`"),
            })?;
            map.set_max_entries(*entries);
        }

        let mut names: Vec<_> = object.maps.keys().cloned().collect();
        names.sort();
        let descriptors = object.maps.clone();
        let maps = names.iter().map(|name| {
            let table = table(name, &descriptors[name])?;
            Ok((name.clone(), table))
        });
        let maps = maps.collect::<Result<_, Error>>()?;

        let sections: HashSet<_> = object
            .functions
            .keys()
            .map(|(section, _)| *section)
            .collect();
        // A map's place in the list stands for its file descriptor.
        let numbered = names
            .iter()
            .zip(1..)
            .map(|(name, number)| (name.as_str(), number, &descriptors[name]));
        object.relocate_maps(numbered, &sections).map_err(broken)?;
        object.relocate_calls(&sections).map_err(broken)?;
        Ok(Self { object, maps })
    }

    /// The program `name`.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn program(&self, name: &str) -> Result<Program, Error> {
        let missing = || Error::NoProgram {
            name: name.to_owned(),
        };
        let program = self.object.programs.get(name).ok_or_else(missing)?;
        let function = self
            .object
            .functions
            .get(&program.function_key())
            .ok_or_else(missing)?;
        let lines = match &self.object.btf {
            Some(btf) => lines::of(&function.line_info.line_info, &btf.to_bytes()),
            None => Vec::new(),
        };
        let starts = function.func_info.func_info.iter();
        Ok(Program::new(
            name.to_owned(),
            function.instructions.clone(),
            lines,
            starts.map(|info| info.insn_off as usize).collect(),
        ))
    }

    /// The names of all programs, in order.
    #[must_use]
    pub fn programs(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.object.programs.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Everything that a program needs around it, with the maps empty.
    #[must_use]
    pub fn world(&self) -> World {
        World::new(self.maps.clone())
    }
}

fn table(name: &str, map: &aya_obj::Map) -> Result<Table, Error> {
    let kind = Kind::of(map.map_type()).ok_or_else(|| Error::MapType {
        name: name.to_owned(),
        kind: map.map_type(),
    })?;
    // Data sections have no key of their own in the object.
    let data = map.data();
    if !data.is_empty() {
        let mut table = Table::new(Kind::Array, 4, data.len(), 1);
        table.set(&0_u32.to_ne_bytes(), data);
        return Ok(table);
    }
    Ok(Table::new(
        kind,
        map.key_size() as usize,
        map.value_size() as usize,
        map.max_entries() as usize,
    ))
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::Object {
        reason: error.to_string(),
    }
}

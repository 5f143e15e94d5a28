//! Checks the module structure of the sources, which are parsed with `syn`.
//!
//! **Layers.** A module of the library imports only from modules in lower layers; modules of one layer do not import each
//! other. `lib.rs` only declares the modules and belongs to no layer; `main.rs` counts as a module named `main`.
//!
//! **Files.** No files import each other in a circle, neither in the library nor in the benchmarks, examples and tests.
//! File A imports file B if a path in A (in a `use`, in code or in a macro) names something that B defines. A re-export
//! is followed to the definition, so `use crate::config::Route` imports the file that defines `Route`, and not the
//! `mod.rs` that re-exports it.
//!
//! A module may use what an ancestor (its parent `mod.rs`, or that one's parent) defines: such an import counts for no
//! circle, because parents declare and use their children anyway. All other imports count: between siblings, from a
//! parent to its child, and from a module to the child of another one. So `mod.rs` → `child.rs` → `mod.rs` is allowed;
//! `a.rs` → `b.rs` → `a.rs` is not, and neither is `a.rs` → `b/mod.rs` → `b/child.rs` → `a.rs`.
//!
//! Items under `#[cfg(test)]` may import anything.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::{
    Attribute, Item, Meta, Token, UseTree,
    punctuated::Punctuated,
    visit::{self, Visit},
};

/// The modules of the library, from the top layer down.
const LAYERS: &[&[&str]] = &[
    &["main", "fuzzing", "simulation"],
    &["cli"],
    &["gateway"],
    &["connection", "admin", "diagnose", "service"],
    &["auth", "http", "relay", "backend", "events", "transport"],
    &["config"],
    &["session", "metrics", "admission", "websocket", "http_client"],
    &[
        "client_certificate",
        "counting_stream",
        "outcome",
        "pem",
        "random",
        "socket_buffer",
        "sync",
        "watched_file",
    ],
];

#[test]
fn modules_import_from_lower_layers_only() {
    let tree = SourceTree::of_library(&manifest_directory().join("src"));
    let importing: BTreeSet<&str> = tree.imports().iter().map(|import| tree.top_level(import.from)).collect();
    for module in ["cli", "gateway", "connection", "relay", "config", "session"] {
        assert!(importing.contains(module), "no import of {module} was found, only those of {importing:?}");
    }
    let violations = tree.layer_violations();
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[test]
fn every_source_file_is_reached() {
    let src = manifest_directory().join("src");
    let unreached: Vec<_> =
        all_files(&src).difference(&SourceTree::of_library(&src).files()).cloned().collect();
    assert!(
        unreached.is_empty(),
        "no `mod` declares {unreached:?}, so they are neither compiled nor checked"
    );
}

#[test]
fn files_do_not_import_each_other_in_circles() {
    let root = manifest_directory();
    let mut circles = SourceTree::of_library(&root.join("src")).circles();
    let roots = crate_roots(root);
    for name in ["benches/relay.rs", "examples/demo/src/main.rs", "tests/gateway/main.rs", "tests/modules.rs"]
    {
        assert!(roots.contains(&root.join(name)), "{name} was not found, only {roots:?}");
    }
    for file in &roots {
        circles.extend(SourceTree::of_crate(file).circles());
    }
    assert!(circles.is_empty(), "\n{}\n", circles.into_iter().collect::<Vec<_>>().join("\n\n"));
}

fn manifest_directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The root files of the benchmarks, the demo and the integration tests.
fn crate_roots(root: &Path) -> BTreeSet<PathBuf> {
    let is_root = |file: &PathBuf, directory: &Path| match file.parent() {
        Some(parent) if parent == directory => true,
        parent => file.ends_with("main.rs") && parent.and_then(Path::parent) == Some(directory),
    };
    let directories = ["benches", "examples/demo", "tests"].map(|name| root.join(name));
    let files = directories
        .iter()
        .flat_map(|directory| all_files(directory).into_iter().filter(move |file| is_root(file, directory)));
    files.collect()
}

/// The Rust files in a directory and in those below it.
fn all_files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("a directory of sources") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() && !path.ends_with("node_modules") {
            files.append(&mut all_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.insert(path);
        }
    }
    files
}

/// The module of a crate's root file.
const ROOT: usize = 0;

/// The modules of one crate. A module is known by its index.
struct SourceTree {
    modules: Vec<Module>,
}

#[derive(Default)]
struct Module {
    /// The names of the modules from the root to this one; empty for the root.
    path: Vec<String>,
    parent: usize,
    file: PathBuf,
    /// Where the files of its children are.
    directory: PathBuf,
    for_tests: bool,
    children: BTreeMap<String, usize>,
    /// The names of the other items that it defines.
    items: BTreeSet<String>,
    /// What each `use` brings into scope: a name, and the path that it stands for.
    aliases: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Every path that it contains, with the line.
    paths: Vec<(usize, Vec<String>)>,
}

/// One path that leads out of the module it is written in.
struct Import {
    line: usize,
    from: usize,
    /// The modules that the path goes through; the last one defines what the path names.
    route: Vec<usize>,
}

impl Import {
    fn definition(&self) -> usize {
        *self.route.last().expect("a resolved path has a module")
    }
}

// Reading.
impl SourceTree {
    /// The library in `src`, with `main.rs` as one more of its modules.
    fn of_library(src: &Path) -> Self {
        let mut tree = Self::of_crate(&src.join("lib.rs"));
        let main = tree.add(ROOT, "main", src.join("main.rs"), src.to_owned(), false);
        tree.modules[main].aliases.insert("portcullis".to_owned(), vec!["crate".to_owned()]);
        tree.read(main);
        tree
    }

    fn of_crate(file: &Path) -> Self {
        let directory = file.parent().expect("a file in a directory").to_owned();
        let root = Module { file: file.to_owned(), directory, ..Module::default() };
        let mut tree = Self { modules: vec![root] };
        tree.read(ROOT);
        tree
    }

    fn add(
        &mut self,
        parent: usize,
        name: &str,
        file: PathBuf,
        directory: PathBuf,
        for_tests: bool,
    ) -> usize {
        let path = [self.modules[parent].path.as_slice(), &[name.to_owned()]].concat();
        let for_tests = for_tests || self.modules[parent].for_tests;
        self.modules.push(Module { path, parent, file, directory, for_tests, ..Module::default() });
        let index = self.modules.len() - 1;
        self.modules[parent].children.insert(name.to_owned(), index);
        index
    }

    /// Parses the file of a module, and those of the modules that it declares.
    fn read(&mut self, module: usize) {
        let file = &self.modules[module].file;
        let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed = syn::parse_file(&text)
            .unwrap_or_else(|error| panic!("{}:{}: {error}", file.display(), error.span().start().line));
        self.modules[module].for_tests |= is_for_tests(&parsed.attrs);
        ModuleReader { tree: self, module }.visit_file(&parsed);
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        self.modules.iter().map(|module| module.file.clone()).collect()
    }
}

/// Adds to a module what its part of the syntax tree contains.
struct ModuleReader<'a> {
    tree: &'a mut SourceTree,
    module: usize,
}

impl ModuleReader<'_> {
    fn module(&mut self) -> &mut Module {
        &mut self.tree.modules[self.module]
    }

    fn declare(&mut self, item: &syn::ItemMod, for_tests: bool) {
        let name = name(&item.ident);
        let parent = self.module();
        let mut directory = parent.directory.join(&name);
        let mut file = parent.file.clone();
        if item.content.is_none() {
            let flat = directory.with_extension("rs");
            file = if flat.is_file() { flat } else { directory.join("mod.rs") };
        }
        if let Some(path) = path_attribute(&item.attrs) {
            let path = parent.directory.join(path);
            file = path.canonicalize().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            directory = file.parent().expect("a file in a directory").to_owned();
        }
        let module = self.tree.add(self.module, &name, file, directory, for_tests);
        match &item.content {
            None => self.tree.read(module),
            Some((_, items)) => {
                let mut inner = ModuleReader { tree: self.tree, module };
                items.iter().for_each(|item| inner.visit_item(item));
            }
        }
    }

    /// Notes what a `use` imports, `prefix` being the path in front of `tree`.
    fn import(&mut self, prefix: &[String], tree: &UseTree) {
        let (ident, alias) = match tree {
            UseTree::Path(path) => {
                return self.import(&[prefix, &[name(&path.ident)]].concat(), &path.tree);
            }
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.import(prefix, tree)),
            UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                self.module().globs.push(prefix.to_vec());
                return self.module().paths.push((line, prefix.to_vec()));
            }
            UseTree::Name(leaf) => (&leaf.ident, None),
            UseTree::Rename(leaf) => (&leaf.ident, Some(name(&leaf.rename))),
        };
        let mut path = prefix.to_vec();
        if ident != "self" || prefix.is_empty() {
            path.push(name(ident));
        }
        let alias = alias.unwrap_or_else(|| path[path.len() - 1].clone());
        self.module().paths.push((ident.span().start().line, path.clone()));
        self.module().aliases.insert(alias, path);
    }
}

impl<'ast> Visit<'ast> for ModuleReader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let for_tests = is_for_tests(attributes(item));
        match item {
            Item::Mod(item) => return self.declare(item, for_tests),
            _ if for_tests => return,
            Item::Use(item) if item.leading_colon.is_none() => return self.import(&[], &item.tree),
            Item::Use(_) => return,
            _ => {}
        }
        self.module().items.extend(defined_name(item));
        visit::visit_item(self, item);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none() {
            let line = path.segments[0].ident.span().start().line;
            let names = path.segments.iter().map(|segment| name(&segment.ident)).collect();
            self.module().paths.push((line, names));
        }
        visit::visit_path(self, path);
    }

    /// Finds the paths in the arguments and definitions of macros, which `syn` does not parse.
    fn visit_token_stream(&mut self, tokens: &'ast TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons) = (0, 0);
        for token in tokens.clone() {
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.module().paths.push((line, std::mem::take(&mut path)));
                        line = ident.span().start().line;
                    }
                    // A path to another crate begins with colons and stays empty.
                    if colons != 2 || !path.is_empty() {
                        path.push(name(ident));
                    }
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    let is_use = colons == 2 && group.delimiter() == Delimiter::Brace && !path.is_empty();
                    let path = std::mem::take(&mut path);
                    match syn::parse2::<UseTree>(TokenStream::from(token.clone())) {
                        Ok(tree) if is_use => self.import(&path, &tree),
                        _ => {
                            self.module().paths.push((line, path));
                            self.visit_token_stream(&group.stream());
                        }
                    }
                    colons = 0;
                }
                _ => {
                    self.module().paths.push((line, std::mem::take(&mut path)));
                    colons = 0;
                }
            }
        }
        self.module().paths.push((line, path));
    }

    /// `pub(in path)` imports nothing.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_impl_item(&mut self, item: &'ast syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            syn::ImplItem::Macro(item) => &item.attrs,
            _ => &Vec::new(),
        };
        if !is_for_tests(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if !is_for_tests(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'ast syn::FieldValue) {
        if !is_for_tests(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        if !is_for_tests(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'ast syn::Arm) {
        if !is_for_tests(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'ast syn::Local) {
        if !is_for_tests(&local.attrs) {
            visit::visit_local(self, local);
        }
    }
}

/// The text of an identifier: `type` for `r#type`.
fn name(ident: &syn::Ident) -> String {
    ident.to_string().trim_start_matches("r#").to_owned()
}

/// The value of `#[path = "…"]`.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    let Meta::NameValue(path) = &attributes.iter().find(|attribute| attribute.path().is_ident("path"))?.meta
    else {
        return None;
    };
    match &path.value {
        syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) => Some(path.value()),
        _ => None,
    }
}

/// Whether `#[cfg(test)]` or `#[cfg(all(test, …))]` is among the attributes.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    let is_test = |meta: &Meta| matches!(meta, Meta::Path(path) if path.is_ident("test"));
    let conditions = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    conditions.filter_map(|attribute| attribute.parse_args::<Meta>().ok()).any(|condition| match &condition {
        Meta::List(list) if list.path.is_ident("all") => list
            .parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
            .is_ok_and(|all| all.iter().any(is_test)),
        condition => is_test(condition),
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    use syn::*;
    match item {
        Item::Const(ItemConst { attrs, .. })
        | Item::Enum(ItemEnum { attrs, .. })
        | Item::ExternCrate(ItemExternCrate { attrs, .. })
        | Item::Fn(ItemFn { attrs, .. })
        | Item::ForeignMod(ItemForeignMod { attrs, .. })
        | Item::Impl(ItemImpl { attrs, .. })
        | Item::Macro(ItemMacro { attrs, .. })
        | Item::Mod(ItemMod { attrs, .. })
        | Item::Static(ItemStatic { attrs, .. })
        | Item::Struct(ItemStruct { attrs, .. })
        | Item::Trait(ItemTrait { attrs, .. })
        | Item::Type(ItemType { attrs, .. })
        | Item::Union(ItemUnion { attrs, .. })
        | Item::Use(ItemUse { attrs, .. }) => attrs,
        _ => &[],
    }
}

fn defined_name(item: &Item) -> Option<String> {
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name(ident))
}

// Resolving.
impl SourceTree {
    /// Every path from one module to another, except in modules for tests.
    fn imports(&self) -> Vec<Import> {
        let mut imports = Vec::new();
        for (from, module) in self.modules.iter().enumerate().filter(|(_, module)| !module.for_tests) {
            for (line, path) in &module.paths {
                let mut route = Vec::new();
                // Names of other crates, of the prelude and of this module lead nowhere else.
                if self.resolve(from, path, &mut route) && route.iter().any(|through| *through != from) {
                    imports.push(Import { line: *line, from, route });
                }
            }
        }
        imports
    }

    /// Follows a path as it is written in the module `at`; `route` receives the modules that it goes through. Returns
    /// whether it names something of this crate.
    fn resolve(&self, at: usize, path: &[String], route: &mut Vec<usize>) -> bool {
        let Some((first, rest)) = path.split_first() else { return false };
        let (start, rest) = match first.as_str() {
            "crate" => (ROOT, rest),
            "self" => (at, rest),
            "super" => (self.modules[at].parent, rest),
            first if self.modules[at].children.contains_key(first) => (at, path),
            first if self.modules[at].aliases.contains_key(first) => (at, path),
            first if self.glob_with(at, first).is_some() => (at, path),
            _ => return false,
        };
        self.follow(start, rest, route)
    }

    /// Follows the rest of a path from the module `at`.
    fn follow(&self, at: usize, path: &[String], route: &mut Vec<usize>) -> bool {
        route.push(at);
        let module = &self.modules[at];
        // Imports that only lead to each other do not compile; the limit stops at them.
        let Some((first, rest)) = path.split_first().filter(|_| route.len() < 32) else { return true };
        if first == "super" {
            return self.follow(module.parent, rest, route);
        }
        if let Some(child) = module.children.get(first) {
            return self.follow(*child, rest, route);
        }
        // `use bytes;` gives a name to itself, which is another crate's.
        if let Some(path) = module.aliases.get(first).filter(|path| path.first() != Some(first)) {
            return self.resolve(at, &[path, rest].concat(), route);
        }
        match self.glob_with(at, first) {
            Some(other) => self.follow(other, path, route),
            None => !module.aliases.contains_key(first),
        }
    }

    /// The module that a name is imported from by a glob.
    fn glob_with(&self, at: usize, name: &str) -> Option<usize> {
        self.modules[at].globs.iter().find_map(|glob| {
            let mut route = Vec::new();
            let names_other = glob.first().is_some_and(|first| first != name);
            let other = (names_other && self.resolve(at, glob, &mut route)).then(|| route.pop())??;
            let module = &self.modules[other];
            let has_name = module.items.contains(name)
                || module.children.contains_key(name)
                || module.aliases.contains_key(name);
            (other != at && has_name).then_some(other)
        })
    }

    fn top_level(&self, module: usize) -> &str {
        self.modules[module].path.first().map_or("the root", String::as_str)
    }

    fn place(&self, import: &Import) -> String {
        let file = &self.modules[import.from].file;
        let file = file.strip_prefix(manifest_directory()).unwrap_or(file);
        format!("{}:{}", file.display(), import.line)
    }
}

// Checking.
impl SourceTree {
    fn layer_violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for import in self.imports().iter().filter(|import| import.from != ROOT) {
            let from = self.top_level(import.from);
            let through = import.route.iter().map(|module| (*module, self.top_level(*module)));
            for (module, to) in through {
                let problem = match to {
                    _ if module == ROOT && module != import.definition() => None,
                    _ if module == ROOT => Some("import from a module instead".to_owned()),
                    to => layer_problem(from, to),
                };
                violations.extend(
                    problem.map(|problem| format!("{}: {from} imports {to}: {problem}", self.place(import))),
                );
            }
        }
        violations.dedup();
        violations
    }

    /// Whether `file` is the file of `module` or of one of its ancestors.
    fn is_ancestor(&self, file: &Path, mut module: usize) -> bool {
        while module != ROOT && self.modules[module].file != file {
            module = self.modules[module].parent;
        }
        self.modules[module].file == file
    }

    /// The circles among the files, one line for each import: through each file the shortest.
    fn circles(&self) -> BTreeSet<String> {
        let mut edges: BTreeMap<&Path, BTreeMap<&Path, String>> = BTreeMap::new();
        for import in self.imports() {
            let from = self.modules[import.from].file.as_path();
            let to = &self.modules[import.definition()];
            if !self.is_ancestor(&to.file, import.from) {
                let line = format!("{}: imports {}", self.place(&import), to.path.join("::"));
                edges.entry(from).or_default().entry(&to.file).or_insert(line);
            }
        }
        edges.keys().filter_map(|file| circle_through(file, &edges)).collect()
    }
}

/// What is wrong with an import, if anything is.
fn layer_problem(from: &str, to: &str) -> Option<String> {
    let layer = |module: &str| LAYERS.iter().position(|modules| modules.contains(&module));
    match (layer(from), layer(to)) {
        _ if from == to => None,
        (None, _) => Some(format!("{from} has no layer yet: add it to LAYERS in tests/modules.rs")),
        (_, None) => Some(format!("{to} has no layer yet: add it to LAYERS in tests/modules.rs")),
        (Some(above), Some(below)) if above < below => None,
        (Some(here), Some(there)) if here == there => Some("it is in the same layer".to_owned()),
        _ => Some("it is in a layer above".to_owned()),
    }
}

/// The shortest circle from a file to itself, its lines beginning with the first of them in the alphabet.
fn circle_through(start: &Path, edges: &BTreeMap<&Path, BTreeMap<&Path, String>>) -> Option<String> {
    let mut lines_to: BTreeMap<&Path, Vec<&str>> = BTreeMap::new();
    let mut queue = VecDeque::from([(start, Vec::new())]);
    while let Some((file, lines)) = queue.pop_front() {
        for (next, line) in edges.get(file).into_iter().flatten() {
            let lines = [lines.as_slice(), &[line.as_str()]].concat();
            if *next == start {
                let first = (0..lines.len()).min_by_key(|at| lines[*at]).unwrap_or(0);
                return Some([&lines[first..], &lines[..first]].concat().join("\n"));
            }
            if !lines_to.contains_key(next) {
                lines_to.insert(next, lines.clone());
                queue.push_back((next, lines));
            }
        }
    }
    None
}

/// The checks themselves, on small sources.
#[cfg(test)]
mod tests {
    use super::*;

    /// A library of these files besides an empty `main.rs`. Without a `lib.rs`, one declares the top-level modules.
    fn library(files: &[(&str, &str)]) -> (tempfile::TempDir, SourceTree) {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = directory.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        };
        let tops: BTreeSet<&str> =
            files.iter().map(|(name, _)| name.split(['/', '.']).next().unwrap()).collect();
        write("lib.rs", &tops.iter().map(|name| format!("mod {name};\n")).collect::<String>());
        write("main.rs", "");
        files.iter().for_each(|(name, text)| write(name, text));
        let tree = SourceTree::of_library(directory.path());
        (directory, tree)
    }

    /// What the module `a` reaches, as "line module", among the top-level modules b to k and `type`.
    fn reached(source: &str) -> Vec<String> {
        reached_by(&[("a.rs", source)])
    }

    fn reached_by(files: &[(&str, &str)]) -> Vec<String> {
        let others = ["b", "c", "d", "e", "f", "g", "h", "i", "k", "type"].map(|name| format!("{name}.rs"));
        let others = others.iter().map(|name| (name.as_str(), ""));
        let all: Vec<_> = files.iter().copied().chain(others).collect();
        let mut lib = String::from("mod a; mod b; mod c; mod d; mod e; mod f; mod g; mod h; mod i; mod k;");
        lib += "mod r#type;";
        let (_directory, tree) = library(&[&[("lib.rs", lib.as_str())], all.as_slice()].concat());
        let imports = tree.imports();
        let of_a = imports.iter().filter(|import| tree.top_level(import.from) == "a");
        let leaving = of_a.filter(|import| tree.top_level(import.definition()) != "a");
        leaving.map(|import| format!("{} {}", import.line, tree.top_level(import.definition()))).collect()
    }

    /// The one problem with the layers of a library in which one file has this text and the others are empty.
    fn problem(module: &str, source: &str) -> Option<String> {
        let names: Vec<String> =
            LAYERS[1..].iter().flat_map(|names| names.iter()).map(|name| format!("{name}.rs")).collect();
        let own = format!("{module}.rs");
        let others = names.iter().filter(|name| **name != own).map(|name| (name.as_str(), ""));
        let extra = ["unknown.rs"].into_iter().filter(|name| *name != own).map(|name| (name, ""));
        let files: Vec<_> = [(own.as_str(), source)].into_iter().chain(others).chain(extra).collect();
        let (directory, tree) = library(&files);
        let violations = tree.layer_violations();
        assert!(violations.len() <= 1, "{violations:?}");
        violations.first().map(|line| line.replace(&format!("{}/", directory.path().display()), ""))
    }

    /// The circles of a library, each import as "file imports module".
    fn circles(files: &[(&str, &str)]) -> Vec<String> {
        let (directory, tree) = library(files);
        let prefix = format!("{}/", directory.path().display());
        let without_line = |line: &str| {
            let (file, rest) = line.split_once(':').unwrap();
            format!("{file}{}", &rest[rest.find(':').unwrap() + 1..])
        };
        let plain = |circle: &String| circle.lines().map(without_line).collect::<Vec<_>>().join(", ");
        tree.circles().iter().map(|circle| plain(&circle.replace(&prefix, ""))).collect()
    }

    #[test]
    fn a_use_over_many_lines_is_read_whole() {
        let source =
            "use std::io;\n\nuse crate::{\n    b::{Config, Route},\n    c::{self, Body},\n    d::Reason,\n};";
        assert_eq!(reached(source), ["4 b", "4 b", "5 c", "5 c", "6 d"]);
        assert_eq!(reached("use crate::{b::{c::{d, e}, f}};"), ["1 b", "1 b", "1 b"]);
        assert_eq!(reached("use crate\n  ::\n  b\n  ::C;"), ["4 b"]);
        assert!(reached("use ::b::C; use b::C; fn f() { ::b::go(); b::go() }").is_empty());
    }

    #[test]
    fn paths_in_code_count_too() {
        let source = "fn f() -> crate::b::Config { crate::c::go::<crate::d::Session>(); crate::e!() }";
        assert_eq!(reached(source), ["1 b", "1 c", "1 d", "1 e"]);
        assert_eq!(reached("impl crate::b::Link for X {}"), ["1 b"]);
        assert_eq!(reached("use crate::b;\nfn f() { b::go() }"), ["1 b", "2 b"]);
        assert_eq!(reached("fn f() { use crate::b as x;\nx::go() }"), ["1 b", "2 b"]);
    }

    #[test]
    fn paths_in_macros_count_too() {
        let source = "fn f() { select! { x = crate::b::go(1) => y(&crate::c::D),\n z = ::d::go() => crate::e::go() } }";
        assert_eq!(reached(source), ["1 b", "1 c", "2 e"]);
        assert_eq!(reached("macro_rules! m { () => { use $crate::{b::X, c}; } }"), ["1 b", "1 c"]);
        assert_eq!(reached("use crate::b;\nfn f() { println!(\"{}\", b::X) }"), ["1 b", "2 b"]);
    }

    #[test]
    fn super_is_followed_to_the_root_and_no_further() {
        assert_eq!(reached("use super::b::Rules;"), ["1 b"]);
        assert_eq!(reached("use super::{b::Rules, c};"), ["1 b", "1 c"]);
        assert_eq!(reached("use super::*;"), ["1 the root"]);
        let nested = "mod inner { use super::own; use super::super::b; } use super::c; const own: u8 = 0;";
        assert_eq!(reached(nested), ["1 c", "1 b"]);
        let child = |source| {
            reached_by(&[("a.rs", "mod child; mod pending;"), ("a/child.rs", source), ("a/pending.rs", "")])
        };
        assert!(child("use super::pending::Pending;").is_empty());
        assert_eq!(child("use super::super::b::Body;"), ["1 b"]);
    }

    #[test]
    fn the_root_itself_is_never_imported() {
        for source in ["use crate::*;", "use crate as tree;", "use crate::{self as tree};", "use crate::{*};"]
        {
            assert_eq!(reached(source), ["1 the root"], "{source}");
        }
        for source in [
            "pub(crate) fn f() {}",
            "pub(in crate) fn f() {}",
            "pub(super) fn f() {}",
            "struct S { pub(crate) a: u8 }",
        ] {
            assert!(reached(source).is_empty(), "{source}");
        }
    }

    #[test]
    fn comments_strings_and_characters_are_not_code() {
        let source = r####"
            //! [`crate::a`]
            /* use crate::b; /* crate::c */ crate::d */
            const S: &str = "crate::e \" crate::f";
            const R: &str = r#"crate::g " crate::h"#;
            const B: &[u8] = b"crate::i";
            const C: [char; 3] = ['"', '\'', '{'];
            fn f<'a>(x: &'a str) -> crate::k::Thing<'a> {}
            use crate::r#type::X;
        "####;
        assert_eq!(reached(source), ["8 k", "9 type"]);
    }

    #[test]
    fn only_what_is_for_tests_is_left_out() {
        let source = "
            #[cfg(test)]
            mod tests {}
            use crate::b::kept;
            #[cfg(test)]
            use crate::{i, k};
            #[cfg(test)]
            #[expect(dead_code, reason = \"why\")]
            fn helper(a: [u8; 2]) -> u8 { crate::i::out() }
            #[cfg(all(test, unix))]
            const X: S = S { a: crate::i::A };
            #[cfg(not(test))]
            use crate::c::real;
            struct T { #[cfg(test)] a: crate::i::A, b: crate::d::B }
            #[cfg(test)]
            mod more { use crate::i; mod deep { use crate::i; } }
            use crate::e::last;";
        assert_eq!(reached(source), ["4 b", "13 c", "14 d", "17 e"]);
        assert!(reached("#![cfg(test)]\nuse crate::i;").is_empty());
    }

    #[test]
    fn modules_for_tests_are_distinguished_from_the_others() {
        let declared = "mod a;\npub mod b;\n#[cfg(test)]\nmod c;\nmod d { }\npub(crate) mod e;";
        let empty = ["a.rs", "b.rs", "c.rs", "e.rs"].map(|name| (name, ""));
        let (_directory, tree) = library(&[&[("lib.rs", declared)], empty.as_slice()].concat());
        let of_root = tree.modules[ROOT].children.iter();
        let found: Vec<_> =
            of_root.map(|(name, index)| (name.as_str(), tree.modules[*index].for_tests)).collect();
        let expected = [("a", false), ("b", false), ("c", true), ("d", false), ("e", false), ("main", false)];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_import_upwards_or_sideways_is_a_violation() {
        assert_eq!(problem("gateway", "use crate::connection;"), None);
        assert_eq!(problem("config", "use crate::admission::PerIp;"), None);
        assert_eq!(problem("relay", "use crate::relay::RelaySettings;"), None);
        assert_eq!(
            problem("outcome", "\nuse crate::session::Session;").unwrap(),
            "outcome.rs:2: outcome imports session: it is in a layer above"
        );
        assert!(problem("relay", "use crate::http::Body;").unwrap().ends_with("it is in the same layer"));
        assert!(problem("relay", "use crate::unknown::Thing;").unwrap().contains("unknown has no layer yet"));
        assert!(problem("unknown", "use crate::outcome;").unwrap().contains("unknown has no layer yet"));
        assert!(problem("relay", "use crate::*;").unwrap().contains("import from a module instead"));
    }

    #[test]
    fn a_tree_is_read_along_its_mod_lines() {
        let (directory, tree) = library(&[
            ("lib.rs", "pub mod gateway;\npub mod outcome;\npub mod relay;\n"),
            ("main.rs", "fn main() { portcullis::relay::go() }"),
            ("gateway.rs", ""),
            ("outcome.rs", "use crate::relay::RelaySettings;"),
            ("relay/mod.rs", "#[cfg(test)]\nmod tests;\nmod inbound;\nuse crate::outcome::Reason;"),
            ("relay/inbound.rs", "use crate::outcome::Reason;"),
            ("relay/tests.rs", "use crate::gateway::Gateway;"),
        ]);
        let src = directory.path();
        assert_eq!(tree.files(), all_files(src));
        let violations = tree.layer_violations();
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert!(violations[0].ends_with("outcome.rs:1: outcome imports relay: it is in a layer above"));
        let from: BTreeSet<&str> = tree.imports().iter().map(|import| tree.top_level(import.from)).collect();
        assert_eq!(from, BTreeSet::from(["main", "outcome", "relay"]));
        fs::write(src.join("forgotten.rs"), "use crate::gateway;").unwrap();
        assert_eq!(all_files(src).difference(&SourceTree::of_library(src).files()).count(), 1);
    }

    #[test]
    fn files_that_import_each_other_are_a_circle() {
        let two = [
            ("m/mod.rs", "mod a; mod b;"),
            ("m/a.rs", "use super::b::{B, C}; pub struct A;"),
            ("m/b.rs", "fn f() { crate::m::a::go() }"),
        ];
        assert_eq!(circles(&two), ["m/a.rs imports m::b, m/b.rs imports m::a"]);
        let three = [
            ("m.rs", "mod a; mod b; mod c;"),
            ("m/a.rs", "use super::b;"),
            ("m/b.rs", "fn f() { select! { x = super::c::go() => {} } }"),
            ("m/c.rs", "use crate::{m as other}; use other::a::A;"),
        ];
        assert_eq!(circles(&three), ["m/a.rs imports m::b, m/b.rs imports m::c, m/c.rs imports m::a"]);
        let across = [("m.rs", "use crate::n::N; pub struct M;"), ("n.rs", "use crate::m::M; pub struct N;")];
        assert_eq!(circles(&across), ["m.rs imports n, n.rs imports m"]);
    }

    #[test]
    fn a_module_and_its_ancestors_are_no_circle() {
        let family = [
            ("m/mod.rs", "mod a; pub use self::a::A; pub struct Parent;"),
            ("m/a.rs", "mod deep; use super::Parent; pub struct A(deep::Deep);"),
            ("m/a/deep.rs", "use crate::m::Parent; use super::A; pub struct Deep;"),
        ];
        assert!(circles(&family).is_empty());
        let one_way = [
            ("m/mod.rs", "mod a; mod b; use self::{a::A, b::B};"),
            ("m/a.rs", "use super::b::B; pub struct A;"),
            ("m/b.rs", "pub struct B; #[cfg(test)] mod tests { use super::super::a::A; }"),
        ];
        assert!(circles(&one_way).is_empty());
    }

    #[test]
    fn a_circle_by_way_of_another_modules_parent_is_found() {
        let files = [
            ("m.rs", "mod a; mod b;"),
            ("m/a.rs", "use super::b::parse; pub struct A;"),
            ("m/b/mod.rs", "mod child; pub fn parse() { child::go() }"),
            ("m/b/child.rs", "use crate::m::a::A;"),
        ];
        let expected = "m/a.rs imports m::b, m/b/mod.rs imports m::b::child, m/b/child.rs imports m::a";
        assert_eq!(circles(&files), [expected]);
    }

    #[test]
    fn a_re_export_is_followed_to_the_definition() {
        let files = |glob| {
            [
                (
                    "m/mod.rs",
                    if glob {
                        "mod a; mod b; pub use self::b::*;"
                    } else {
                        "mod a; mod b; pub use self::b::B;"
                    },
                ),
                ("m/a.rs", "use crate::m::B; pub struct A;"),
                ("m/b.rs", "use crate::m::a::A; pub struct B;"),
            ]
        };
        for glob in [false, true] {
            assert_eq!(circles(&files(glob)), ["m/a.rs imports m::b, m/b.rs imports m::a"], "{glob}");
        }
    }
}

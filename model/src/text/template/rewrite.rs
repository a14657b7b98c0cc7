//! A template as published in, an equal template out in which every operation that copies or compares goes through
//! functions of ours.
//!
//! minijinja's parser gives the tree; this prints it again. `a ~ b` becomes `_gt_concat(a, b)`, a piece of text becomes
//! `{{ _gt_text("...") }}`, `[a]` becomes `_gt_new([a])`. Line numbers are kept by breaking lines inside the tags. Tags
//! that reach other templates (`include`, `import`, `extends`) are refused: there are none.

use minijinja::machinery::ast::{self, Expr, Spanned, Stmt};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::{Error, ErrorKind};

use super::escapes::string_escapes;

/// What the names that only rewritten templates use begin with.
pub const PREFIX: &str = "_gt_";
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 200;
/// Bytes of a template, before and after rewriting.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Rewrites `source`, whose white space is treated as transformers does (`trim_blocks`, `lstrip_blocks`).
pub fn rewrite(source: &str) -> Result<String, Error> {
    let source = string_escapes(&source.replace("\r\n", "\n").replace('\r', "\n"))?;
    let source = generation_blocks(&source);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let tree = parse(&source, "chat template", syntax)?;
    let mut printer = Printer { out: String::with_capacity(source.len() * 2), line: 1 };
    printer.stmt(&tree)?;
    Ok(printer.out)
}

/// `{% generation %}` marks what the assistant said; only the scope that the tag opens matters here.
fn generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (head, tag) = rest.split_at(at + 2);
        out.push_str(head);
        let body = tag.trim_start_matches(['-', '+']).trim_start();
        let word = body.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or("");
        let after = &body[word.len()..];
        let closes = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        rest = match word {
            "generation" | "endgeneration" if closes => {
                out.push_str(&tag[..tag.len() - body.len()]);
                out.push_str(if word == "generation" { "with" } else { "endwith" });
                // minijinja wants a space before the end of an empty `with`.
                out.push(' ');
                after
            }
            _ => tag,
        };
    }
    out + rest
}

/// The rewritten template as far as it is printed; statements here, expressions in `expression`.
pub struct Printer {
    out: String,
    line: u32,
}

impl Printer {
    pub fn put(&mut self, text: &str) -> &mut Printer {
        self.out.push_str(text);
        self
    }

    /// A string literal; its lines stay on one, for lines are counted.
    pub fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    /// Fails once the rewritten template is too long.
    pub fn require_room(&self) -> Result<(), Error> {
        match self.out.len() {
            0..=TEMPLATE_BYTES_MAX => Ok(()),
            _ => Err(refused("the template grows too large when it is compiled")),
        }
    }

    /// Opens a tag on the line where the original stood.
    fn open<T>(&mut self, mark: &str, node: &Spanned<T>) -> Result<&mut Printer, Error> {
        self.require_room()?;
        self.put(mark);
        while self.line < u32::from(node.span().start_line) {
            self.out.push('\n');
            self.line += 1;
        }
        Ok(self.put(" "))
    }

    fn end(&mut self, word: &str) -> Result<(), Error> {
        self.put("{% ").put(word).put(" %}");
        Ok(())
    }

    fn body(&mut self, stmts: &[Stmt<'_>]) -> Result<(), Error> {
        stmts.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt<'_>) -> Result<(), Error> {
        match stmt {
            Stmt::Template(node) => self.body(&node.children),
            Stmt::EmitRaw(node) => {
                self.open("{{", node)?.put(PREFIX).put("text(").string(node.raw);
                self.put(") }}");
                Ok(())
            }
            Stmt::EmitExpr(node) => {
                let constant = matches!(node.expr, Expr::Const(_));
                self.open("{{", node)?.put(if constant { PREFIX } else { "" }).put(if constant {
                    "text("
                } else {
                    ""
                });
                self.expr(&node.expr)?;
                self.put(if constant { ") }}" } else { " }}" });
                Ok(())
            }
            Stmt::ForLoop(node) => self.for_loop(node),
            Stmt::IfCond(node) => {
                self.if_cond(node, "if")?;
                self.end("endif")
            }
            Stmt::WithBlock(node) => self.with_block(node),
            Stmt::Set(node) => self.set(node),
            Stmt::SetBlock(node) => self.set_block(node),
            Stmt::AutoEscape(node) => self.body(&node.body),
            Stmt::FilterBlock(node) => {
                self.open("{%", node)?.put("filter ");
                self.filter_chain(&node.filter)?;
                self.put(" %}").body(&node.body)?;
                self.end("endfilter")
            }
            Stmt::Block(node) => self.body(&node.body),
            Stmt::Macro(node) => self.macro_block(node),
            Stmt::CallBlock(node) => self.call_block(node),
            Stmt::Continue(node) => self.bare(node, "continue"),
            Stmt::Break(node) => self.bare(node, "break"),
            Stmt::Do(node) => {
                self.open("{%", node)?.put("do ");
                self.call(&node.call)?;
                self.put(" %}");
                Ok(())
            }
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                Err(refused("a chat template cannot reach other templates"))
            }
        }
    }

    fn bare<T>(&mut self, node: &Spanned<T>, word: &str) -> Result<(), Error> {
        self.open("{%", node)?.put(word).put(" %}");
        Ok(())
    }

    fn for_loop(&mut self, node: &Spanned<ast::ForLoop<'_>>) -> Result<(), Error> {
        self.open("{%", node)?.put("for ").target(&node.target)?;
        self.put(" in ").put(PREFIX).put("iter(").expr(&node.iter)?;
        self.put(")");
        if let Some(filter) = &node.filter_expr {
            self.put(" if (").expr(filter)?;
            self.put(")");
        }
        self.put(if node.recursive { " recursive %}" } else { " %}" }).body(&node.body)?;
        if !node.else_body.is_empty() {
            self.put("{% else %}").body(&node.else_body)?;
        }
        self.end("endfor")
    }

    fn if_cond(&mut self, node: &Spanned<ast::IfCond<'_>>, word: &str) -> Result<(), Error> {
        self.open("{%", node)?.put(word).put(" ").expr(&node.expr)?;
        self.put(" %}").body(&node.true_body)?;
        match &node.false_body[..] {
            [] => Ok(()),
            [Stmt::IfCond(next)] => self.if_cond(next, "elif"),
            other => self.put("{% else %}").body(other),
        }
    }

    fn with_block(&mut self, node: &Spanned<ast::WithBlock<'_>>) -> Result<(), Error> {
        self.open("{%", node)?.put("with ");
        for (i, (target, value)) in node.assignments.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            let tuple = matches!(target, Expr::List(_));
            self.put(if tuple { "(" } else { "" }).target(target)?;
            self.put(if tuple { ")" } else { "" }).put(" = ").expr(value)?;
        }
        self.put(" %}").body(&node.body)?;
        self.end("endwith")
    }

    fn set(&mut self, node: &Spanned<ast::Set<'_>>) -> Result<(), Error> {
        self.open("{%", node)?.put("set ").target(&node.target)?;
        // Only an attribute of a namespace outlives the scope.
        let outlives = !matches!(node.target, Expr::Var(_));
        self.put(" = ").put(if outlives { PREFIX } else { "" }).put(if outlives { "keep(" } else { "(" });
        self.expr(&node.expr)?;
        self.put(") %}");
        Ok(())
    }

    fn set_block(&mut self, node: &Spanned<ast::SetBlock<'_>>) -> Result<(), Error> {
        self.open("{%", node)?.put("set ").target(&node.target)?;
        if let Some(filter) = &node.filter {
            self.put(" | ").filter_chain(filter)?;
        }
        self.put(" %}").body(&node.body)?;
        self.end("endset")
    }

    fn macro_block(&mut self, node: &Spanned<ast::Macro<'_>>) -> Result<(), Error> {
        let name = own_name(node.name)?;
        self.open("{%", node)?.put("macro ").put(name).put("(").signature(node)?;
        self.put(") %}").body(&node.body)?;
        self.end("endmacro")
    }

    fn call_block(&mut self, node: &Spanned<ast::CallBlock<'_>>) -> Result<(), Error> {
        self.open("{%", node)?.put("call(").signature(&node.macro_decl)?;
        self.put(") ").call(&node.call)?;
        self.put(" %}").body(&node.macro_decl.body)?;
        self.end("endcall")
    }

    /// Names and defaults; the defaults belong to the last names.
    fn signature(&mut self, node: &ast::Macro<'_>) -> Result<(), Error> {
        let first_default = node.args.len() - node.defaults.len();
        for (i, arg) in node.args.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" }).target(arg)?;
            if i >= first_default {
                self.put("=").expr(&node.defaults[i - first_default])?;
            }
        }
        Ok(())
    }

    /// What is assigned to: a name, an attribute of a namespace, or several in a tuple.
    fn target(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        match expr {
            Expr::Var(node) => self.put(own_name(node.id)?),
            Expr::GetAttr(node) => {
                self.target(&node.expr)?;
                self.put(".").put(own_name(node.name)?)
            }
            Expr::List(node) => {
                for item in &node.items {
                    let nested = matches!(item, Expr::List(_));
                    self.put(if nested { "(" } else { "" }).target(item)?;
                    self.put(if nested { ")," } else { "," });
                }
                // A comma at the end only where it makes the tuple.
                if node.items.len() > 1 {
                    self.out.pop();
                }
                self
            }
            other => return Err(refused(format!("cannot assign to a {}", other.description()))),
        };
        Ok(())
    }
}

/// A name of the template's own, which is short enough to look up in no time; ours are not for it to use.
pub fn own_name(name: &str) -> Result<&str, Error> {
    if name.starts_with(PREFIX) {
        return Err(refused(format!("names that begin with {PREFIX} are reserved")));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(refused(format!("a name of more than {NAME_BYTES_MAX} bytes")));
    }
    Ok(name)
}

pub fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::SyntaxError, detail.into())
}

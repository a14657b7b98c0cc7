//! A template as published in, an equal template out in which every operation that copies or compares goes through
//! functions of ours.
//!
//! minijinja's parser gives the tree; this prints it again. `a ~ b` becomes `_gt_concat(a, b)`, a piece of text becomes
//! `{{ _gt_text("...") }}`, `[a]` becomes `_gt_new([a])`. Line numbers are kept by breaking lines inside the tags. Tags
//! that reach other templates (`include`, `import`, `extends`) are refused: there are none.

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, Spanned, Stmt, UnaryOpKind};
use minijinja::machinery::parse;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::methods;

/// What the names that only rewritten templates use begin with.
pub const PREFIX: &str = "_gt_";
/// Bytes of a template, before and after rewriting.
pub const TEMPLATE_BYTES_MAX: usize = 1 << 20;

/// Rewrites `source`, whose white space is treated as transformers does (`trim_blocks`, `lstrip_blocks`).
pub fn rewrite(source: &str) -> Result<String, Error> {
    let source = generation_blocks(&source.replace("\r\n", "\n").replace('\r', "\n"));
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

struct Printer {
    out: String,
    line: u32,
}

impl Printer {
    fn put(&mut self, text: &str) -> &mut Printer {
        self.out.push_str(text);
        self
    }

    /// Opens a tag on the line where the original stood.
    fn open<T>(&mut self, mark: &str, node: &Spanned<T>) -> Result<&mut Printer, Error> {
        if self.out.len() > TEMPLATE_BYTES_MAX {
            return Err(refused("the template grows too large when it is compiled"));
        }
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
                self.open("{{", node)?.put(if constant { PREFIX } else { "" }).put(if constant { "text(" } else { "" });
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
        self.put(" = ").put(PREFIX).put("keep(");
        if matches!(node.target, Expr::Var(_)) {
            // Only an attribute of a namespace outlives the scope.
            self.out.truncate(self.out.len() - PREFIX.len() - "keep(".len());
            self.put("(");
        }
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
                self.put(".").put(node.name)
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

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        match expr {
            Expr::Var(node) => {
                self.put(own_name(node.id)?);
            }
            Expr::Const(node) => self.constant(&node.value)?,
            Expr::Slice(node) => self.slice(node)?,
            Expr::UnaryOp(node) => {
                match node.op {
                    UnaryOpKind::Not => self.put("(not "),
                    UnaryOpKind::Neg => self.put(PREFIX).put("neg("),
                };
                self.expr(&node.expr)?;
                self.put(")");
            }
            Expr::BinOp(node) => match node.op {
                BinOpKind::ScAnd => self.infix(&node.left, " and ", &node.right)?,
                BinOpKind::ScOr => self.infix(&node.left, " or ", &node.right)?,
                op => self.operator(binary_name(op), &node.left, &node.right)?,
            },
            Expr::Compare(node) => self.compare(node)?,
            Expr::IfExpr(node) => {
                self.put("(").expr(&node.true_expr)?;
                self.put(" if ").expr(&node.test_expr)?;
                if let Some(other) = &node.false_expr {
                    self.put(" else ").expr(other)?;
                }
                self.put(")");
            }
            Expr::Filter(_) => {
                self.put("(").filter_chain(expr)?;
                self.put(")");
            }
            Expr::Test(node) => {
                self.put("(").expr(&node.expr)?;
                self.put(" is ").put(node.name).args(&node.args)?;
                self.put(")");
            }
            Expr::GetAttr(node) if methods::is_dict_method(node.name) => {
                self.put(PREFIX).put("attr(").expr(&node.expr)?;
                self.put(", ").string(node.name);
                self.put(")");
            }
            Expr::GetAttr(node) => {
                self.expr(&node.expr)?;
                self.put(".").put(node.name);
            }
            Expr::GetItem(node) => {
                self.expr(&node.expr)?;
                self.put("[").expr(&node.subscript_expr)?;
                self.put("]");
            }
            Expr::Call(node) => self.call(node)?,
            Expr::List(node) => self.items("[", &node.items, "]")?,
            Expr::Tuple(node) if node.items.len() == 1 => self.items("(", &node.items, ",)")?,
            Expr::Tuple(node) => self.items("(", &node.items, ")")?,
            Expr::Map(node) => self.map(node)?,
        }
        Ok(())
    }

    fn infix(&mut self, left: &Expr<'_>, sign: &str, right: &Expr<'_>) -> Result<(), Error> {
        self.put("(").expr(left)?;
        self.put(sign).expr(right)?;
        self.put(")");
        Ok(())
    }

    fn operator(&mut self, name: &str, left: &Expr<'_>, right: &Expr<'_>) -> Result<(), Error> {
        self.put(PREFIX).put(name).put("(").expr(left)?;
        self.put(", ").expr(right)?;
        self.put(")");
        Ok(())
    }

    /// `a < b < c` is `a < b and b < c`; evaluating `b` twice changes nothing, for expressions have no effects.
    fn compare(&mut self, node: &ast::Compare<'_>) -> Result<(), Error> {
        if self.out.len() > TEMPLATE_BYTES_MAX {
            return Err(refused("the template grows too large when it is compiled"));
        }
        let mut left = &node.expr;
        self.put("(");
        for (i, step) in node.ops.iter().enumerate() {
            self.put(if i > 0 { " and " } else { "" });
            let negated = matches!(step.op, CompareOpKind::NotIn);
            self.put(if negated { "(not " } else { "" });
            self.operator(compare_name(step.op), left, &step.expr)?;
            self.put(if negated { ")" } else { "" });
            left = &step.expr;
        }
        self.put(")");
        Ok(())
    }

    fn slice(&mut self, node: &ast::Slice<'_>) -> Result<(), Error> {
        self.put(PREFIX).put("slice(").expr(&node.expr)?;
        self.put(", [");
        for (i, bound) in [&node.start, &node.stop, &node.step].into_iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            match bound {
                Some(bound) => self.expr(bound)?,
                None => drop(self.put("none")),
            }
        }
        self.put("])");
        Ok(())
    }

    fn call(&mut self, node: &ast::Call<'_>) -> Result<(), Error> {
        match &node.expr {
            // A method: its name is no attribute here.
            Expr::GetAttr(method) => {
                self.expr(&method.expr)?;
                self.put(".").put(method.name);
            }
            callee => self.expr(callee)?,
        }
        self.put("(");
        self.arg_list(&node.args)?;
        self.put(")");
        Ok(())
    }

    /// The filters of a chain, innermost first; a chain without a value begins a block.
    fn filter_chain(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
        let Expr::Filter(node) = expr else { return self.expr(expr) };
        if let Some(inner) = &node.expr {
            self.filter_chain(inner)?;
            self.put(" | ");
        }
        self.put(node.name).args(&node.args)
    }

    fn args(&mut self, args: &[CallArg<'_>]) -> Result<(), Error> {
        if !args.is_empty() {
            self.put("(").arg_list(args)?;
            self.put(")");
        }
        Ok(())
    }

    fn arg_list(&mut self, args: &[CallArg<'_>]) -> Result<(), Error> {
        for (i, arg) in args.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            match arg {
                CallArg::Pos(value) => self.expr(value)?,
                CallArg::Kwarg(name, value) => self.put(name).put("=").expr(value)?,
                CallArg::PosSplat(value) => self.put("*").expr(value)?,
                CallArg::KwargSplat(value) => self.put("**").expr(value)?,
            }
        }
        Ok(())
    }

    fn items(&mut self, open: &str, items: &[Expr<'_>], close: &str) -> Result<(), Error> {
        self.put(PREFIX).put("new(").put(open);
        for (i, item) in items.iter().enumerate() {
            self.put(if i > 0 { ", " } else { "" }).expr(item)?;
        }
        self.put(close).put(")");
        Ok(())
    }

    fn map(&mut self, node: &ast::Map<'_>) -> Result<(), Error> {
        self.put(PREFIX).put("new({");
        for (i, (key, value)) in node.keys.iter().zip(&node.values).enumerate() {
            self.put(if i > 0 { ", " } else { "" });
            match key {
                Expr::Const(_) => self.expr(key)?,
                key => {
                    self.put(PREFIX).put("key(").expr(key)?;
                    self.put(")");
                }
            }
            self.put(": ").expr(value)?;
        }
        self.put("})");
        Ok(())
    }

    fn constant(&mut self, value: &Value) -> Result<(), Error> {
        match (value.kind(), value.as_str()) {
            (_, Some(text)) => self.string(text),
            (ValueKind::None, _) => drop(self.put("none")),
            (ValueKind::Bool, _) => drop(self.put(if value.is_true() { "true" } else { "false" })),
            (ValueKind::Number, _) => drop(self.put(&value.to_string())),
            (kind, _) => return Err(refused(format!("a constant of type {kind}"))),
        }
        Ok(())
    }

    fn string(&mut self, text: &str) {
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
}

fn binary_name(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Eq => "eq",
        BinOpKind::Ne => "ne",
        BinOpKind::Lt => "lt",
        BinOpKind::Lte => "le",
        BinOpKind::Gt => "gt",
        BinOpKind::Gte => "ge",
        BinOpKind::Add => "add",
        BinOpKind::Sub => "sub",
        BinOpKind::Mul => "mul",
        BinOpKind::Div => "div",
        BinOpKind::FloorDiv => "floordiv",
        BinOpKind::Rem => "mod",
        BinOpKind::Pow => "pow",
        BinOpKind::Concat => "concat",
        BinOpKind::In => "in",
        BinOpKind::ScAnd | BinOpKind::ScOr => unreachable!("printed as they stand, they evaluate only one side"),
    }
}

fn compare_name(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => "eq",
        CompareOpKind::Ne => "ne",
        CompareOpKind::Lt => "lt",
        CompareOpKind::Lte => "le",
        CompareOpKind::Gt => "gt",
        CompareOpKind::Gte => "ge",
        CompareOpKind::In | CompareOpKind::NotIn => "in",
    }
}

/// A name of the template's own; ours are not for it to use.
fn own_name(name: &str) -> Result<&str, Error> {
    if name.starts_with(PREFIX) {
        return Err(refused(format!("names that begin with {PREFIX} are reserved")));
    }
    Ok(name)
}

fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::SyntaxError, detail.into())
}

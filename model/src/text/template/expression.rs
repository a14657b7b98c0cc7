//! Expressions of a template, printed so that every operator, literal and slice calls a function of ours.

use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, UnaryOpKind};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::methods;
use super::rewrite::{NAME_BYTES_MAX, PREFIX, Printer, own_name, refused};

impl Printer {
    pub fn expr(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
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
                self.put(".").put(own_name(node.name)?);
            }
            Expr::GetItem(node) if is_short(&node.subscript_expr) => {
                self.expr(&node.expr)?;
                self.put("[").expr(&node.subscript_expr)?;
                self.put("]");
            }
            Expr::GetItem(node) => self.operator("item", &node.expr, &node.subscript_expr)?,
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

    /// `a < b < c` is `a < b and b < c`. That `b` is evaluated twice shows only where it calls a macro that sets an
    /// attribute of a namespace.
    fn compare(&mut self, node: &ast::Compare<'_>) -> Result<(), Error> {
        self.require_room()?;
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

    pub fn call(&mut self, node: &ast::Call<'_>) -> Result<(), Error> {
        match &node.expr {
            Expr::GetAttr(method) if methods::is_loop_method(method.name) => {
                self.put(PREFIX).put("loop(").expr(&method.expr)?;
                self.put(", ").string(method.name);
                self.put(if node.args.is_empty() { "" } else { ", " }).arg_list(&node.args)?;
                self.put(")");
                return Ok(());
            }
            // A method: its name is no attribute here.
            Expr::GetAttr(method) => {
                self.expr(&method.expr)?;
                self.put(".").put(own_name(method.name)?);
            }
            callee => self.expr(callee)?,
        }
        self.put("(");
        self.arg_list(&node.args)?;
        self.put(")");
        Ok(())
    }

    /// The filters of a chain, innermost first; a chain without a value begins a block.
    pub fn filter_chain(&mut self, expr: &Expr<'_>) -> Result<(), Error> {
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
                CallArg::Kwarg(name, value) => self.put(own_name(name)?).put("=").expr(value)?,
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
                key if is_short(key) => self.expr(key)?,
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
}

/// Whether a key is a text so short that hashing it costs nothing to speak of.
fn is_short(key: &Expr<'_>) -> bool {
    matches!(key, Expr::Const(node) if node.value.as_str().is_some_and(|text| text.len() <= NAME_BYTES_MAX))
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
        BinOpKind::ScAnd | BinOpKind::ScOr => {
            unreachable!("printed as they stand, they evaluate only one side")
        }
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

//! What a form may cost. Where compiling meets a limit the request is answered 400, where drawing
//! meets one that request ends with an error; nobody else's does.

use llguidance::api::ParserLimits;

/// Of a schema, an expression, or all choices together.
pub const FORM_BYTES_MAX: usize = 256 << 10;
/// Of a grammar. Its rules may refer to each other in one long row, and the library follows them
/// on the stack.
pub const GRAMMAR_BYTES_MAX: usize = 64 << 10;
/// Brackets that are open at once in a grammar or an expression.
pub const NESTING_MAX: usize = 1_000;
/// Of one schema: each is compared with each other, whether they overlap.
pub const PATTERN_PROPERTIES_MAX: usize = 64;
/// Properties of one object that need not be there: each may follow each.
pub const PROPERTIES_OPTIONAL_MAX: usize = 400;
/// Branches of a `oneOf` that are compared with each other behind references.
pub const BRANCHES_MAX: usize = 256;
/// Compiled forms that are kept for the next request; the longest unused makes room.
pub const FORMS_KEPT_MAX: usize = 64;
/// Symbols in all productions of a compiled grammar.
pub const GRAMMAR_SYMBOLS_MAX: usize = 200_000;
/// Nodes of expressions made while compiling; 50 take a microsecond.
pub const COMPILE_NODES_MAX: u64 = 1_000_000;
/// Nodes of expressions made for one mask; 14 take a microsecond.
pub const MASK_NODES_MAX: u64 = 200_000;
/// Items of the parser made for one mask; 20 take a microsecond.
pub const MASK_ITEMS_MAX: usize = 50_000;
/// Items of the parser after one byte: how many ways a grammar may go on.
pub const BYTE_ITEMS_MAX: usize = 2_000;
/// States of the lexer of one sequence, of one or two kilobytes.
pub const LEXER_STATES_MAX: usize = 50_000;

/// The same as the library takes them.
pub(super) fn parser() -> ParserLimits {
    ParserLimits {
        max_items_in_row: BYTE_ITEMS_MAX,
        initial_lexer_fuel: COMPILE_NODES_MAX,
        step_lexer_fuel: MASK_NODES_MAX,
        step_max_items: MASK_ITEMS_MAX,
        max_lexer_states: LEXER_STATES_MAX,
        max_grammar_size: GRAMMAR_SYMBOLS_MAX,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

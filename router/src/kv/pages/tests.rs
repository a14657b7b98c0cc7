//! Pages that are held, found, let go and given away.

use super::*;

fn salt(name: &str) -> Salt {
    Salt { tenant: TenantId(name.into()), extra: None }
}

fn full(of: u32) -> [u32; PAGE_POSITIONS] {
    [of; PAGE_POSITIONS]
}

/// A sequence that computed the pages that `of` names.
fn computed(pages: &mut Pages, salt: &Salt, of: &[u32]) -> Vec<u32> {
    let mut parent = Parent::Root(salt.clone());
    let mut table = Vec::new();
    for &of in of {
        let page = pages.fresh().unwrap();
        let (page, next) = pages.complete(page, parent, full(of));
        parent = next;
        table.push(page);
    }
    table
}

fn text(of: &[u32]) -> Vec<u32> {
    of.iter().flat_map(|&of| full(of)).collect()
}

#[test]
fn prompts_that_begin_alike_share_pages_within_a_salt() {
    let mut pages = Pages::new(8, true);
    let a = computed(&mut pages, &salt("a"), &[1, 2, 3]);
    let find = |pages: &Pages, name: &str, of: &[u32]| pages.find(&salt(name), &text(of));
    assert_eq!(find(&pages, "a", &[1, 2, 9]).pages, a[..2]);
    assert_eq!(find(&pages, "a", &[1, 2, 3, 4]).pages, a);
    // The same page behind another is another page.
    assert_eq!(find(&pages, "a", &[2, 3]).pages, [0u32; 0]);
    assert_eq!(find(&pages, "b", &[1, 2]).pages, [0u32; 0]);
    let salted = Salt { extra: Some("x".into()), ..salt("a") };
    assert_eq!(pages.find(&salted, &text(&[1])).pages, [0u32; 0]);
    let hit = find(&pages, "a", &[1, 2]);
    assert_eq!((hit.idle, hit.held_once), (0, 2));
    pages.hold(&hit);
    let all = find(&pages, "a", &[1, 2, 3]);
    assert_eq!((all.idle, all.held_once), (0, 1));
    pages.release(a.clone());
    assert_eq!((pages.idle(), pages.available()), (1, 6));
    assert_eq!(pages.audit([(&hit.pages[..], 2)].into_iter()), Ok(()));
    // What a holder still has cannot be taken; what nobody has can, however known it is.
    assert_eq!((0..6).filter_map(|_| pages.fresh()).count(), 6);
    assert_eq!(pages.fresh(), None);
    assert_eq!(find(&pages, "a", &[1, 2, 3]).pages, a[..2]);
}

#[test]
fn the_end_of_what_was_let_go_first_goes_first() {
    let mut pages = Pages::new(4, true);
    let a = computed(&mut pages, &salt("a"), &[1, 2]);
    let b = computed(&mut pages, &salt("a"), &[3, 4]);
    pages.release(b.clone());
    pages.release(a.clone());
    assert_eq!(pages.fresh(), Some(b[1]));
    assert_eq!(pages.find(&salt("a"), &text(&[3, 4])).pages, b[..1]);
    assert_eq!(pages.fresh(), Some(b[0]));
    assert_eq!(pages.fresh(), Some(a[1]));
    assert_eq!(pages.find(&salt("a"), &text(&[1, 2])).pages, a[..1]);
}

#[test]
fn a_page_computed_twice_is_kept_once() {
    let mut pages = Pages::new(4, true);
    let a = computed(&mut pages, &salt("a"), &[1]);
    let b = computed(&mut pages, &salt("a"), &[1]);
    assert_eq!(a, b);
    assert_eq!(pages.available(), 3);
    assert_eq!(pages.audit([(&a[..], 1), (&b[..], 1)].into_iter()), Ok(()));
    pages.release(a);
    pages.release(b);
    assert_eq!((pages.available(), pages.idle()), (4, 1));
    pages.clear();
    assert_eq!((pages.available(), pages.idle()), (4, 0));
    assert_eq!(pages.audit([].into_iter()), Ok(()));
}

#[test]
fn without_a_cache_pages_are_free_when_they_are_let_go() {
    let mut pages = Pages::new(2, false);
    let a = computed(&mut pages, &salt("a"), &[1, 2]);
    pages.release(a);
    assert_eq!((pages.available(), pages.idle()), (2, 0));
    assert_eq!(pages.find(&salt("a"), &text(&[1])).pages, [0u32; 0]);
}

#[test]
fn what_was_found_before_is_found_again() {
    // The lowest bits of a linear congruence are poor.
    let mut state = 1u64;
    let mut roll = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    };
    let mut pages = Pages::new(12, true);
    let texts: Vec<Vec<u32>> =
        (0..6).map(|of| text(&[1, of % 2, of % 3, of])).chain([text(&[1]), text(&[7, 7])]).collect();
    let mut hits: Vec<Hit> = texts.iter().map(|text| pages.find(&salt("a"), text)).collect();
    let mut tables: Vec<Vec<u32>> = Vec::new();
    let (mut shorter, mut longer, mut same) = (0, 0, 0);
    for _ in 0..5000 {
        match roll(8) {
            0..4 if !tables.is_empty() => {
                let table = tables.swap_remove(roll(tables.len()));
                pages.release(table);
            }
            4 => tables.extend(pages.fresh().map(|page| vec![page])),
            5 => {
                let hit = pages.find(&salt("a"), &texts[roll(texts.len())]);
                pages.hold(&hit);
                tables.push(hit.pages);
            }
            _ => {
                let of = texts[roll(texts.len())].as_chunks::<PAGE_POSITIONS>().0.to_vec();
                let mut parent = Parent::Root(salt("a"));
                let mut table = Vec::new();
                for tokens in of {
                    let Some(page) = pages.fresh() else { break };
                    let (page, next) = pages.complete(page, parent, tokens);
                    parent = next;
                    table.push(page);
                }
                tables.push(table);
            }
        }
        let at = roll(texts.len());
        let before = hits[at].pages.len();
        same += usize::from(hits[at].at == pages.changes);
        pages.find_again(&mut hits[at], &salt("a"), &texts[at]);
        assert_eq!(hits[at], pages.find(&salt("a"), &texts[at]));
        shorter += usize::from(hits[at].pages.len() < before);
        longer += usize::from(hits[at].pages.len() > before);
    }
    assert!(shorter > 50 && longer > 50 && same > 50, "{shorter} {longer} {same}");
}

#[test]
fn the_audit_sees_what_is_wrong() {
    let mut pages = Pages::new(3, true);
    let a = computed(&mut pages, &salt("a"), &[1]);
    let audit = |pages: &Pages, tables: &[(&[u32], usize)]| {
        pages.audit(tables.iter().copied()).err().unwrap_or_default()
    };
    assert_eq!(audit(&pages, &[]), "page 0: 1 holders are counted, 0 hold it");
    assert!(audit(&pages, &[(&a, 0)]).contains("written by one"));
    pages.free.push(a[0]);
    assert!(audit(&pages, &[(&a, 1)]).contains("1 times free"));
}

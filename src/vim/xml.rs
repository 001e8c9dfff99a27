//! One forward pass over an XML answer, no tree.
//!
//! Names are told apart by namespace, never by prefix: real vCenters write `xsi:type` where others write
//! `_XMLSchema-instance:type`. Document types and entities other than the five of XML are refused: SOAP
//! 1.1 §3 forbids them, and they are the way to bombs.

use quick_xml::XmlVersion;
use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;
use std::borrow::Cow;
use std::sync::Arc;

/// SOAP 1.1 envelope.
pub const SOAP: &str = "http://schemas.xmlsoap.org/soap/envelope/";
/// The vSphere API.
pub const VIM: &str = "urn:vim25";
/// XML Schema instance: where `type` lives.
pub const XSI: &str = "http://www.w3.org/2001/XMLSchema-instance";
/// XML Schema: where `string`, `boolean` and `dateTime` live.
pub const XSD: &str = "http://www.w3.org/2001/XMLSchema";

/// Deepest nesting that is followed. The deepest answer that we ask for has 9 levels.
const MAX_DEPTH: usize = 64;
/// Outermost elements whose start tags are remembered: envelope, body, response, result.
const OUTERMOST: usize = 4;
/// Most types that are remembered.
const MAX_TYPES: usize = 32;
/// Longest text of one element, bytes.
const MAX_TEXT: usize = 64 * 1024;

/// Why an answer can't be understood. Tells the place and the kind of the trouble, never the content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {position}")]
pub struct Unreadable {
    what: String,
    position: u64,
}

impl Unreadable {
    /// The same in a document of which what was read is a part: `dropped` bytes of it stood before that, which
    /// begins with `repeated` bytes that are none of it.
    pub(super) fn in_whole(self, dropped: u64, repeated: u64) -> Self {
        Self { position: dropped + self.position.saturating_sub(repeated), ..self }
    }
}

/// The namespaces that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ns {
    /// SOAP 1.1 envelope.
    Soap,
    /// The vSphere API.
    Vim,
    /// No namespace: `faultcode`, `faultstring` and `detail` of SOAP 1.1.
    None,
    /// Any other one.
    Other,
}

/// An element's start, or its end.
#[derive(Debug)]
pub enum Token<'a> {
    /// An element starts.
    Open(Element<'a>),
    /// The element that was opened last and not closed yet ends.
    Close,
    /// The document ended, whole.
    End,
}

/// What stands in an element.
#[derive(Debug)]
pub enum Inside<'a> {
    /// A child starts.
    Open(Element<'a>),
    /// A piece of text.
    Text(Cow<'a, str>),
    /// The element ends.
    Close,
}

/// The start of an element.
#[derive(Debug)]
pub struct Element<'a> {
    /// Its namespace.
    pub ns: Ns,
    /// Value of `xsi:type` without prefix.
    pub xsi_type: Option<Arc<str>>,
    tag: BytesStart<'a>,
}

impl Element<'_> {
    /// Its name without prefix.
    pub fn name(&self) -> &str {
        self.tag.local_name().into_inner()
    }

    /// Whether it is `name` of the vSphere API.
    pub fn is_vim(&self, name: &str) -> bool {
        self.ns == Ns::Vim && self.name() == name
    }

    /// Whether it is `name` of the SOAP envelope.
    pub fn is_soap(&self, name: &str) -> bool {
        self.ns == Ns::Soap && self.name() == name
    }

    /// The attribute `name` that has no prefix, such as `type` of a reference.
    pub fn attribute(&self, name: &str) -> Option<String> {
        let attribute = self.tag.try_get_attribute(name).ok()??;
        Some(attribute.normalized_value(XmlVersion::Implicit1_0).ok()?.into_owned())
    }
}

/// Reads a document from its start to its end.
pub struct Cursor<'a> {
    reader: NsReader<&'a [u8]>,
    depth: usize,
    began: bool,
    /// The start tags of the outermost elements that are open, as they came.
    outermost: Vec<BytesStart<'a>>,
    /// The types that were met: an answer has a few, each of them thousands of times.
    types: Vec<Arc<str>>,
}

impl<'a> Cursor<'a> {
    /// At the start of `body`, which has to be UTF-8, as SOAP over HTTP from vCenters always is.
    pub fn new(body: &'a [u8]) -> Result<Self, Unreadable> {
        let text = std::str::from_utf8(body).map_err(|error| Unreadable {
            what: "not UTF-8".to_owned(),
            position: u64::try_from(error.valid_up_to()).unwrap_or(u64::MAX),
        })?;
        let mut reader = NsReader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Ok(Self { reader, depth: 0, began: false, outermost: Vec::new(), types: Vec::new() })
    }

    /// An error at the place that was reached.
    pub fn unreadable(&self, what: impl Into<String>) -> Unreadable {
        Unreadable { what: what.into(), position: self.reader.buffer_position() }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> u64 {
        self.reader.buffer_position()
    }

    /// The start tags of the elements that are open, as they came: with them before it the rest of the
    /// document can be read by itself. `None`: there are more of them than are remembered.
    pub(super) fn opened(&self) -> Option<&[BytesStart<'a>]> {
        self.outermost.get(..self.depth)
    }

    /// The next start or end of an element. Text between elements is skipped.
    pub fn token(&mut self) -> Result<Token<'a>, Unreadable> {
        loop {
            match self.event()? {
                Step::Open(element) => return Ok(Token::Open(element)),
                Step::Close => return Ok(Token::Close),
                Step::End => return Ok(Token::End),
                Step::Text(_) => {}
            }
        }
    }

    /// The next child of the element that was opened last; `None` where that ends.
    pub fn child(&mut self) -> Result<Option<Element<'a>>, Unreadable> {
        match self.token()? {
            Token::Open(element) => Ok(Some(element)),
            Token::Close => Ok(None),
            Token::End => Err(self.unreadable("the answer is cut off")),
        }
    }

    /// The next thing in the element that was opened last, text included.
    pub fn inside(&mut self) -> Result<Inside<'a>, Unreadable> {
        match self.event()? {
            Step::Open(element) => Ok(Inside::Open(element)),
            Step::Text(text) => Ok(Inside::Text(text)),
            Step::Close => Ok(Inside::Close),
            Step::End => Err(self.unreadable("the answer is cut off")),
        }
    }

    /// Skips the rest of the element that was opened last.
    pub fn skip(&mut self) -> Result<(), Unreadable> {
        let outside = self.depth.saturating_sub(1);
        while self.depth > outside {
            self.token()?;
        }
        Ok(())
    }

    /// The text of the element that was opened last, up to its end. Elements within are skipped.
    pub fn text(&mut self) -> Result<Cow<'a, str>, Unreadable> {
        match self.text_within(MAX_TEXT)? {
            Some(text) => Ok(text),
            None => Err(self.unreadable("a text is longer than its limit")),
        }
    }

    /// The same; `None` if it has more than `limit` bytes.
    pub fn text_within(&mut self, limit: usize) -> Result<Option<Cow<'a, str>>, Unreadable> {
        let inside = self.depth;
        let mut text: Cow<'a, str> = Cow::Borrowed("");
        let mut is_within = true;
        loop {
            match self.event()? {
                Step::Text(more) if self.depth == inside => {
                    is_within &= text.len() + more.len() <= limit;
                    if !is_within {
                        text = Cow::Borrowed("");
                    } else if text.is_empty() {
                        text = more;
                    } else {
                        text.to_mut().push_str(&more);
                    }
                }
                Step::Text(_) | Step::Open(_) => {}
                Step::Close if self.depth < inside => return Ok(is_within.then_some(text)),
                Step::Close => {}
                Step::End => return Err(self.unreadable("the answer is cut off")),
            }
        }
    }

    fn event(&mut self) -> Result<Step<'a>, Unreadable> {
        loop {
            let (ns, event) = match self.reader.read_resolved_event() {
                Ok((ns, event)) => (known(&ns), event),
                Err(error) => {
                    let what = format!("not well-formed XML ({})", kind_of(&error));
                    return Err(self.unreadable(what));
                }
            };
            return Ok(match event {
                Event::Start(tag) => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(self.unreadable("nested deeper than its limit"));
                    }
                    if self.depth == 1 && std::mem::replace(&mut self.began, true) {
                        return Err(self.unreadable("a second root element"));
                    }
                    if self.depth <= OUTERMOST {
                        self.outermost.truncate(self.depth - 1);
                        self.outermost.push(tag.clone());
                    }
                    let xsi_type = self.xsi_type(&tag)?;
                    Step::Open(Element { ns, xsi_type, tag })
                }
                Event::End(_) => {
                    self.depth = self.depth.saturating_sub(1);
                    Step::Close
                }
                Event::Text(text) => Step::Text(text.into_inner()),
                Event::CData(text) => Step::Text(text.into_inner()),
                Event::GeneralRef(reference) => {
                    let resolved = match reference.resolve_char_ref() {
                        Ok(Some(c)) => Cow::Owned(c.to_string()),
                        Ok(None) => Cow::Borrowed(match &*reference.into_inner() {
                            "lt" => "<",
                            "gt" => ">",
                            "amp" => "&",
                            "quot" => "\"",
                            "apos" => "'",
                            _ => return Err(self.unreadable("an entity that XML does not define")),
                        }),
                        Err(_) => return Err(self.unreadable("a bad character reference")),
                    };
                    Step::Text(resolved)
                }
                Event::DocType(_) => return Err(self.unreadable("a document type")),
                Event::Eof if self.depth > 0 => return Err(self.unreadable("the answer is cut off")),
                Event::Eof if !self.began => return Err(self.unreadable("no XML element")),
                Event::Eof => Step::End,
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::Empty(_) => continue,
            });
        }
    }

    /// The local part of `xsi:type`. Its prefix names a schema (vim25 or XML Schema), whose type names do
    /// not overlap where it matters.
    fn xsi_type(&mut self, tag: &BytesStart<'_>) -> Result<Option<Arc<str>>, Unreadable> {
        if tag.attributes_raw().is_empty() {
            return Ok(None);
        }
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|_| self.unreadable("a bad attribute"))?;
            let (ns, name) = self.reader.resolver().resolve_attribute(attribute.key);
            if name.into_inner() == "type"
                && matches!(&ns, ResolveResult::Bound(ns) if ns.into_inner() == XSI)
            {
                let value = attribute
                    .normalized_value(XmlVersion::Implicit1_0)
                    .map_err(|_| self.unreadable("a bad attribute"))?;
                let local = value.rsplit(':').next().unwrap_or_default().trim();
                if let Some(known) = self.types.iter().find(|known| &***known == local) {
                    return Ok(Some(Arc::clone(known)));
                }
                let new: Arc<str> = local.into();
                if self.types.len() < MAX_TYPES {
                    self.types.push(Arc::clone(&new));
                }
                return Ok(Some(new));
            }
        }
        Ok(None)
    }
}

enum Step<'a> {
    Open(Element<'a>),
    Close,
    Text(Cow<'a, str>),
    End,
}

fn known(ns: &ResolveResult<'_>) -> Ns {
    match ns {
        ResolveResult::Bound(ns) => match ns.into_inner() {
            SOAP => Ns::Soap,
            VIM => Ns::Vim,
            _ => Ns::Other,
        },
        ResolveResult::Unbound => Ns::None,
        ResolveResult::Unknown(_) => Ns::Other,
    }
}

/// The kind alone: the error's own text quotes the answer.
fn kind_of(error: &quick_xml::Error) -> &'static str {
    match error {
        quick_xml::Error::Syntax(_) => "syntax",
        quick_xml::Error::IllFormed(_) => "tags that do not match",
        quick_xml::Error::InvalidAttr(_) => "a bad attribute",
        quick_xml::Error::Namespace(_) => "a bad namespace",
        _ => "broken",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(document: &str) -> Result<Vec<String>, Unreadable> {
        let mut cursor = Cursor::new(document.as_bytes())?;
        let mut names = Vec::new();
        loop {
            match cursor.token()? {
                Token::Open(element) => names.push(element.name().to_owned()),
                Token::Close => {}
                Token::End => return Ok(names),
            }
        }
    }

    #[test]
    fn a_type_is_found_by_its_namespace_whatever_its_prefix() {
        for prefix in ["xsi", "_XMLSchema-instance", "q1"] {
            let text =
                format!(r#"<v xmlns:{prefix}="{XSI}" xmlns:x="{XSD}" {prefix}:type="x:string" type="no"/>"#);
            let mut cursor = Cursor::new(text.as_bytes()).unwrap();
            let element = match cursor.token().unwrap() {
                Token::Open(element) => element,
                other => panic!("{other:?}"),
            };
            assert_eq!(element.xsi_type.as_deref(), Some("string"), "{prefix}");
            assert_eq!(element.attribute("type").as_deref(), Some("no"));
        }
    }

    #[test]
    fn text_comes_whole_with_its_references_resolved() {
        let mut cursor =
            Cursor::new(b"<a>x &lt;&amp;&#x41;<!-- no --><b>skipped</b>y<![CDATA[<z>]]></a>").unwrap();
        cursor.token().unwrap();
        assert_eq!(cursor.text().unwrap(), "x <&Ay<z>");
        assert!(matches!(cursor.token().unwrap(), Token::End));
    }

    #[test]
    fn what_opens_doors_to_bombs_is_refused() {
        let deep = "<a>".repeat(65) + &"</a>".repeat(65);
        let cases = [
            (r#"<!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>"#, "a document type"),
            ("<a>&b;</a>", ""),
            (deep.as_str(), "nested deeper than its limit"),
            ("<a/><b/>", "a second root element"),
            ("", "no XML element"),
            ("<a><b></b>", "the answer is cut off"),
        ];
        for (text, what) in cases {
            let error = all(text).and_then(|_| {
                let mut cursor = Cursor::new(text.as_bytes())?;
                cursor.token()?;
                cursor.text().map(|_| ())
            });
            let error = error.expect_err(text).to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
        let long = format!("<a>{}</a>", "x".repeat(MAX_TEXT + 1));
        let mut cursor = Cursor::new(long.as_bytes()).unwrap();
        cursor.token().unwrap();
        assert!(cursor.text().is_err());
    }
}

#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn conversation(json: &str) -> Conversation {
    Conversation {
        messages: serde_json::from_str(json).unwrap(),
        ..Conversation::default()
    }
}

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::new(source, None, tokens.into()).unwrap()
}

fn render(source: &str, json: &str) -> String {
    template(source).render(&conversation(json)).unwrap()
}

const HELLO: &str = r#"[{"role": "user", "content": " Hello <b> "}]"#;

/// The form of most instruction models' templates: special tokens, a check of the roles, trimmed
/// blocks, methods of strings.
#[test]
fn blocks_are_trimmed_and_nothing_is_escaped() {
    let source = "{{ bos_token }}\n\
        {% for message in messages %}\n    \
            {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n\
                {{ raise_exception('roles must alternate') }}\n\
            {% endif %}\n\
            [{{ message['role'].upper() }}] {{ message['content'].strip() }}{{ eos_token }}\n\
        {% endfor %}\n\
        {% if add_generation_prompt %}\n[ASSISTANT]{% endif %}";
    assert_eq!(
        render(source, HELLO),
        "<s>\n[USER] Hello <b></s>\n[ASSISTANT]"
    );
    let twice = r#"[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]"#;
    let error = template(source).render(&conversation(twice)).unwrap_err();
    assert_eq!(
        error,
        "are refused by the chat template: roles must alternate"
    );
}

#[test]
fn what_the_template_cannot_do_is_said_with_its_line() {
    let error = template("a\n{{ messages[0].content.nothing() }}");
    let error = error.render(&conversation(HELLO)).unwrap_err();
    assert!(error.contains("line 2"), "{error}");
    assert!(ChatTemplate::new("{% for %}", None, BTreeMap::new()).is_err());
}

#[test]
fn loop_controls_namespaces_slices_and_macros() {
    let source = "{%- set ns = namespace(system='') -%}\
        {%- macro turn(m) -%}<{{ m.role }}>{{ m.content }}{%- endmacro -%}\
        {%- for m in messages -%}{%- if m.role != 'system' -%}{%- continue -%}{%- endif -%}\
        {%- set ns.system = m.content -%}{%- break -%}{%- endfor -%}\
        {{ ns.system }}|{% for m in messages[1:] %}{{ turn(m) }}{% endfor %}";
    let json = r#"[{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}]"#;
    assert_eq!(render(source, json), "be short|<user>hi");
}

/// As `json.dumps` writes it: the order of names, spaces, no escapes of HTML or of letters.
#[test]
fn tojson_is_python_s() {
    let mut with_tools = conversation(HELLO);
    let tools =
        r#"[{"type": "function", "name": "wetter_für", "args": {"b": 1.0, "a": [true, null]}}]"#;
    with_tools.tools = Some(serde_json::from_str(tools).unwrap());
    let text = template("{{ tools | tojson }}").render(&with_tools);
    assert_eq!(text.unwrap(), tools);
    let text = template("{{ tools[0].args | tojson(indent=2) }}").render(&with_tools);
    assert_eq!(
        text.unwrap(),
        "{\n  \"b\": 1.0,\n  \"a\": [\n    true,\n    null\n  ]\n}"
    );
}

#[test]
fn tools_may_have_a_template_of_their_own() {
    let template = ChatTemplate::new("plain", Some("with tools"), BTreeMap::new()).unwrap();
    let mut one = conversation(HELLO);
    assert_eq!(template.render(&one).unwrap(), "plain");
    one.tools = Some(Value::from_iter([1]));
    assert_eq!(template.render(&one).unwrap(), "with tools");
}

#[test]
fn the_last_message_can_be_continued() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content.strip() }}</s>{% endfor %}";
    let json = r#"[{"role": "user", "content": "one"}, {"role": "assistant", "content": "two "}]"#;
    let mut one = conversation(json);
    one.continue_final_message = true;
    let text = template(source).render(&one).unwrap();
    assert_eq!(text, "<user>one</s><assistant>two");
    one.add_generation_prompt = Some(true);
    assert!(template(source).render(&one).is_err());
}

#[test]
fn blocks_that_mark_what_is_learned_are_plain() {
    let source = "{%- for m in messages -%}{%- generation -%} {{ m.content }} {%- endgeneration %}.{% endfor %}";
    assert_eq!(render(source, HELLO), " Hello <b> .");
    assert_eq!(
        without_generation_blocks("a {% generation"),
        "a {% generation"
    );
}

#[test]
fn variables_of_a_request_are_seen() {
    let mut one = conversation(HELLO);
    one.variables.insert("thinking".into(), Value::from(false));
    let source = "{{ 'no' if thinking is defined and not thinking else 'yes' }}";
    assert_eq!(template(source).render(&one).unwrap(), "no");
    assert_eq!(render(source, HELLO), "yes");
}

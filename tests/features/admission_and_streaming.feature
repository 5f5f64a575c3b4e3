Feature: Admission and streaming
  A task that was accepted is durable and has a place in its queue. Its stream is read from the one journal: by whoever asks,
  from wherever they were, also after the server was killed.

  Background:
    Given a server with 2 slots

  Scenario: An accepted task is told its place and streamed to one end
    When the client submits "poem" of 20 tokens
    And it follows "poem" to its end
    Then "poem" was accepted with 0 tasks before it
    And it saw the start, 20 tokens in order and the one end "stop"

  Scenario: A late reader gets everything from the start
    Given "poem" of 20 tokens has ended
    When the client follows "poem" to its end
    Then it saw the start, 20 tokens in order and the one end "stop"

  Scenario: A reader goes on after the last frame that it has seen
    Given "poem" of 20 tokens has ended
    When the client follows "poem" after its token 11
    Then it saw the tokens 12 to 19 in order and the one end "stop"

  Scenario: A stream outlives the kill of its server
    When the client submits "epic" of 150 tokens, 100 a second
    And it follows "epic" while the server is killed and started again after 20 tokens
    Then it saw the start, 150 tokens in order and the one end "stop"
    And it had to come back

  Scenario: Several readers of one task see the same
    When the client submits "poem" of 30 tokens, 100 a second
    Then 5 readers of "poem" see the same 30 tokens and one end

  Scenario: The same request under the same key is the same task
    When the client submits "first" of 5 tokens under the key "spring"
    And the client submits "second" of 5 tokens under the key "spring"
    Then "second" attached to "first"

  Scenario: Another request under the same key is a conflict
    Given the client submitted "first" of 5 tokens under the key "autumn"
    When the client submits "second" of 6 tokens under the key "autumn"
    Then it is refused with 409 "CONFLICT"

  Scenario Outline: What is wrong with a request is named
    When the client submits a task whose <field> is <value>
    Then it is refused with 400 "INVALID_PARAMS"
    And the refusal names "<field>", says that it got <value>, and what to do

    Examples:
      | field       | value |
      | max_tokens  | 0     |
      | temperature | 7     |
      | n           | 99    |
      | deadline_ms | -1    |
      | top_p       | 2     |

  Scenario: A model that nobody serves is answered with the nearest name
    When the client submits a task whose model_ref is "mok"
    Then it is refused with 404 "MODEL_NOT_FOUND"
    And the refusal says "did you mean 'mock'"

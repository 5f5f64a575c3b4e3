Feature: Budgets
  What may be spent is reserved before it is spent, and never exceeded. What was reserved and not spent comes back. The bill is
  what the journal holds of the answer, not what the engine decoded.

  Background:
    Given a server with 2 slots, at 2.50 for a million tokens of prompts and 10.00 for a million of answers

  Scenario: A task is charged for its prompt and what it said
    Given a session that may spend 500 tokens
    When a task of 20 tokens ends in it
    Then the session has spent the tokens of its prompt and 20 more
    And it has spent 2.50 for a million of the one and 10.00 for a million of the other
    And nothing is reserved any more

  Scenario: At the cap the answer ends, and the cap holds
    Given a session that may spend 40 tokens
    When a task of 500 tokens ends in it
    Then the task has failed with "BUDGET_EXHAUSTED"
    And every token that its readers saw is paid for, and the session has spent 40 tokens at most

  Scenario: Who has spent all is refused before the queue
    Given a session that may spend 40 tokens
    When a task of 500 tokens ends in it
    And the client asks for another task in the session
    Then it is refused with 402 "BUDGET_EXHAUSTED"

  Scenario: A cancelled task is charged for what it said
    Given a session that may spend 5000 tokens
    When a task in it is cancelled while it speaks
    Then the session has spent the tokens of its prompt and those that its readers saw
    And nothing is reserved any more

  Scenario: Large max_tokens lock nobody out
    Given a session that may spend 2000 tokens
    When 10 tasks of 20 tokens with max_tokens 100000 run in it at once
    Then all of them complete
    And nothing is reserved any more

  Scenario: A raised cap counts at once
    Given a session that may spend 40 tokens
    When a task of 500 tokens ends in it
    And the operator raises the cap to 1000 tokens
    And a task of 20 tokens ends in it
    Then the task has completed

  Scenario: A kill of the server charges nothing twice
    Given a session that may spend 5000 tokens
    When the server is killed and started again while a task of 150 tokens speaks in it
    Then the session has spent the tokens of its prompt and 150 more
    And nothing is reserved any more
